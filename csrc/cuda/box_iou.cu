// Intersection over union of every pair of boxes.
//
// One launch, a thread for each pair, pairs in the order of the result: writing it is what takes the time.
#include "common.cuh"

namespace mgassign::cuda::box_iou {

constexpr int kThreads = 256;

struct Pairs {
  FloatView<2> boxes, gt_boxes;
  int64_t count;
  int64_t num_objects;
  float* iou;  // [P, G]
};

__global__ void __launch_bounds__(kThreads) box_iou_kernel(const __grid_constant__ Pairs p) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (pair >= p.count) return;
  const auto [j, g] = split_pair(pair, p.num_objects);
  const Box a = p.boxes.box_at(j * p.boxes.stride[0]), b = p.gt_boxes.box_at(g * p.gt_boxes.stride[0]);
  p.iou[pair] = is_valid(a) && is_valid(b) ? iou_of(a, area_of(a), b, area_of(b)) : 0.0f;
}

Tensor box_iou_cuda(const Tensor& boxes, const Tensor& gt_boxes) {
  check_boxes(boxes, "boxes", "[P, 4]");
  check_boxes(gt_boxes, "gt_boxes", "[G, 4]");
  check_same_device(gt_boxes, boxes, "gt_boxes");
  const Queue queue(boxes);
  const int64_t num_objects = gt_boxes.size(0), count = boxes.size(0) * num_objects;
  Tensor result = new_tensor(boxes, {boxes.size(0), num_objects}, ScalarType::Float);
  const Pairs pairs{FloatView<2>(boxes), FloatView<2>(gt_boxes), count, num_objects, result.mutable_data_ptr<float>()};
  if (count > 0) queue.launch(box_iou_kernel, dim3(blocks_for(count, kThreads)), kThreads, pairs);
  return result;
}

MGASSIGN_CUDA_LIBRARY(m) { m.impl("box_iou", TORCH_BOX(&box_iou_cuda)); }

}  // namespace mgassign::cuda::box_iou
