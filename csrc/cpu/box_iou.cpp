// Intersection over union of every pair of boxes.
#include <torch/csrc/stable/library.h>

#include "objects.h"

namespace mgassign::cpu {

namespace {

MGASSIGN_VECTOR void iou_with_all(const Box& box, const Boxes& others, float* iou) {
  const float area = area_of(box);
  for (int64_t g = 0; g < others.count; ++g) iou[g] = iou_of(box, area, others[g], others.area[g]);
}

// Boxes that are none become empty ones, which overlap nothing.
Box cleaned(const Box& box) { return is_valid(box) ? box : Box{0.0f, 0.0f, 0.0f, 0.0f}; }

}  // namespace

Tensor box_iou_cpu(const Tensor& boxes, const Tensor& gt_boxes) {
  check_boxes(boxes, "boxes", "[P, 4]");
  check_boxes(gt_boxes, "gt_boxes", "[G, 4]");
  check_same_device(gt_boxes, boxes, "gt_boxes");
  const int64_t rows = boxes.size(0), columns = gt_boxes.size(0);
  Tensor result = new_tensor(boxes, {rows, columns}, ScalarType::Float);
  float* const iou = result.mutable_data_ptr<float>();
  if (result.numel() == 0) return result;

  BoxArrays others(columns);
  const FloatView<2> row_boxes(boxes), column_boxes(gt_boxes);
  for (int64_t g = 0; g < columns; ++g) {
    const Box box = cleaned(column_boxes.box_at(g * column_boxes.stride[0], column_boxes.stride[1]));
    others.set(g, box, area_of(box));
  }
  constexpr int64_t kBlock = 64;
  const int64_t blocks = (rows + kBlock - 1) / kBlock;
  for_each_unit(blocks, threads_for(blocks, rows * columns), [&](int64_t block, int64_t) {
    const int64_t first = block * kBlock, count = std::min(kBlock, rows - first);
    float x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock];
    row_boxes.read_boxes(first * row_boxes.stride[0], row_boxes.stride[0], row_boxes.stride[1], count,
                         {x1, y1, x2, y2});
    for (int64_t i = 0; i < count; ++i)
      iou_with_all(cleaned({x1[i], y1[i], x2[i], y2[i]}), others.view(0, columns), iou + (first + i) * columns);
  });
  return result;
}

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) { m.impl("box_iou", MGASSIGN_OPERATOR(box_iou_cpu)); }
