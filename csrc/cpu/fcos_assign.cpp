// FCOS's own strategy: the points inside an object's central box, on the levels made for its size.
//
// Candidates are enumerated from the grid's description; no point is visited that no object wants.
#include <torch/csrc/stable/library.h>

#include "../math/centerness.h"
#include "steps.h"

namespace mgassign::cpu {

void assign_original(const Grid& grid, const Objects& objects, int64_t num_objects, double center_radius,
                     int64_t* owner, int64_t* num_points) {
  std::fill_n(owner, grid.num_points, kBackground);
  std::fill_n(num_points, num_objects, int64_t{0});
  for (int64_t k = 0; k < objects.count; ++k) {
    const Object object = objects[k];
    const Box& box = object.box;
    int64_t taken = 0;
    for (const Level& level : grid.levels) {
      if (!level.may_accept_inside(box.x2 - box.x1, box.y2 - box.y1)) continue;
      const Box central =
          center_radius > 0 ? intersection_of(around_center(box, level.stride, center_radius), box) : box;
      const Span columns = strictly_between(level.x, level.width, central.x1, central.x2);
      const Span rows = strictly_between(level.y, level.height, central.y1, central.y2);
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float vertical = axis_distances(level.y.coordinate(row), box.y1, box.y2).longest;
        int64_t* const owner_of_row = owner + level.first_point + row * level.width;
        for (int64_t column = columns.begin; column < columns.end; ++column) {
          const float horizontal = axis_distances(level.x.coordinate(column), box.x1, box.x2).longest;
          // Smaller objects came first: a point that is taken stays taken.
          if (owner_of_row[column] >= 0 || !level.accepts(larger(horizontal, vertical))) continue;
          owner_of_row[column] = object.index;
          ++taken;
        }
      }
    }
    num_points[object.index] = taken;
  }
}

std::tuple<Tensor, Tensor> fcos_assign_cpu(const Tensor& gt_boxes, MGASSIGN_OBJECTS_PARAMETERS,
                                           MGASSIGN_GRID_PARAMETERS, double center_radius) {
  const Grid grid = make_grid(MGASSIGN_GRID_ARGUMENTS);
  check_center_radius(center_radius);
  const int64_t num_images = check_objects(gt_boxes, gt_offsets, gt_counts);

  Tensor original = new_tensor(gt_boxes, {num_images, grid.num_points}, ScalarType::Long);
  Tensor num_points = new_tensor(gt_boxes, {gt_boxes.numel() / 4}, ScalarType::Long);
  if (nothing_to_assign(original, gt_boxes, gt_offsets, gt_counts)) return {original, num_points};
  ObjectBatch batch(gt_boxes, nullptr, gt_offsets, gt_counts);
  int64_t* const owner = original.mutable_data_ptr<int64_t>();
  int64_t* const counts = num_points.mutable_data_ptr<int64_t>();
  for_each_unit(batch.num_images(), threads_for(batch.num_images(), original.numel() + 64 * batch.num_objects()),
                [&](int64_t image, int64_t) {
                  assign_original(grid, batch.rank(image), batch.size(image), center_radius,
                                  owner + image * grid.num_points, counts + batch.first(image));
                });
  return {original, num_points};
}

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) { m.impl("fcos_assign", MGASSIGN_OPERATOR(fcos_assign_cpu)); }
