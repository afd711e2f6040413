// FCOS's own strategy: the points inside an object's central box, on the levels made for its size.
//
// Two launches, because counters start at 0: a memset of num_points, then a warp for each tile of 8 x 4 points.
// Its lanes take an object each and ask whether it touches the tile's ground; with those that do, all lanes
// then compare their points.
#include "steps.cuh"

namespace mgassign::cuda::fcos_assign {

constexpr int kWarps = 4;  // of a block
constexpr int kThreads = kWarps * kWarp;

struct Assignment {
  Levels levels;
  CenterSampling sampling;
  ObjectRows objects;
  const float* gt_boxes;
  int64_t points_per_image;
  int64_t* original;               // [B, P]
  unsigned long long* num_points;  // [N], zeros
};

__global__ void __launch_bounds__(kThreads) fcos_assign_kernel(const __grid_constant__ Assignment a) {
  __shared__ Object objects[kWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t image = a.objects.first_image + blockIdx.y;
  const ObjectRows::Rows rows = a.objects.of(image);
  const uint32_t tile = blockIdx.x * kWarps + warp;
  const Place place = place_of(a.levels, tile, lane);
  const Level& level = a.levels.level[place.level];

  Champion champion;
  for (int32_t base = 0; base < rows.count; base += kWarp) {
    Object mine{{0.0f, 0.0f, 0.0f, 0.0f}, 0.0f, base + lane, -1};
    if (mine.index < rows.count) {
      mine.box = object_box(a.gt_boxes, rows.first + mine.index);
      mine.area = area_of(mine.box);
    }
    const bool may_hold = is_valid(mine.box) && touches(place.tile, mine.box) &&
                          level.may_accept_inside(mine.box.x2 - mine.box.x1, mine.box.y2 - mine.box.y1);
    const int count = gather(objects[warp], mine, may_hold, lane);
#pragma unroll 1  // more would take the registers of other warps
    for (int i = 0; i < count; ++i) {
      const Object object = objects[warp][i];
      if (place.exists && strictly_inside(place.at, object.box) &&
          level.accepts(Distances(place.at, object.box).longest()) && a.sampling.is_central(place, object.box))
        champion.meet(1.0f, object.area, object.index);  // of candidates that are worth the same, the smallest
    }
  }
  if (!place.exists) return;
  a.original[image * a.points_per_image + place.point] = champion.index;
  if (champion.index >= 0) atomicAdd(&a.num_points[rows.first + champion.index], 1ull);
}

std::tuple<Tensor, Tensor> fcos_assign_cuda(const Tensor& gt_boxes, MGASSIGN_OBJECTS_PARAMETERS,
                                            MGASSIGN_GRID_PARAMETERS, double center_radius) {
  const Grid grid = make_grid(MGASSIGN_GRID_ARGUMENTS);
  check_center_radius(center_radius);
  const ObjectBatch batch(gt_boxes, gt_offsets, gt_counts);

  const Queue queue(gt_boxes);
  Tensor original = new_tensor(gt_boxes, {batch.num_images(), grid.num_points}, ScalarType::Long);
  Tensor num_points = new_tensor(gt_boxes, {batch.num_objects()}, ScalarType::Long);
  int64_t* const counts = num_points.mutable_data_ptr<int64_t>();
  queue.zero(counts, batch.num_objects() * sizeof(int64_t));
  if (grid.num_points == 0) return {original, num_points};

  Assignment assignment{Levels(grid),
                        CenterSampling(grid, center_radius),
                        {},
                        gt_boxes.const_data_ptr<float>(),
                        grid.num_points,
                        original.mutable_data_ptr<int64_t>(),
                        reinterpret_cast<unsigned long long*>(counts)};
  batch.for_each_launch([&](const ObjectRows& rows, unsigned images) {
    assignment.objects = rows;
    queue.launch(fcos_assign_kernel, dim3(blocks_for(tiles_of(grid), kWarps), images), kThreads, assignment);
  });
  return {original, num_points};
}

MGASSIGN_CUDA_LIBRARY(m) { m.impl("fcos_assign", TORCH_BOX(&fcos_assign_cuda)); }

}  // namespace mgassign::cuda::fcos_assign
