// Intersection over union of every pair of boxes.
#include <torch/csrc/stable/library.h>

#include "steps.h"

namespace mgassign::cpu {

namespace {

MGASSIGN_VECTOR void iou_with_all(const Box& box, const Objects& others, float* iou) {
  const float area = area_of(box);
  for (int64_t g = 0; g < others.count; ++g)
    iou[g] = iou_of(box, area, {others.x1[g], others.y1[g], others.x2[g], others.y2[g]}, others.area[g]);
}

// Boxes that are none become empty ones, which overlap nothing.
template <typename Element>
Box load(const Strided<Element, 2>& boxes, int64_t row) {
  const Element* const at = boxes.data + row * boxes.stride[0];
  const int64_t step = boxes.stride[1];
  const Box box{static_cast<float>(at[0]), static_cast<float>(at[step]), static_cast<float>(at[2 * step]),
                static_cast<float>(at[3 * step])};
  return is_valid(box) ? box : Box{0.0f, 0.0f, 0.0f, 0.0f};
}

}  // namespace

Tensor box_iou_cpu(const Tensor& boxes, const Tensor& gt_boxes) {
  check_boxes(boxes, "boxes", "[P, 4]");
  check_boxes(gt_boxes, "gt_boxes", "[G, 4]");
  check_same_device(gt_boxes, boxes, "gt_boxes");
  const int64_t rows = boxes.size(0), columns = gt_boxes.size(0);
  Tensor result = new_tensor(boxes, {rows, columns}, ScalarType::Float);
  float* const iou = result.mutable_data_ptr<float>();
  if (result.numel() == 0) return result;

  ObjectArrays others(columns);
  with_strided<2>(gt_boxes, [&](const auto& view) {
    for (int64_t g = 0; g < columns; ++g) {
      const Box box = load(view, g);
      others.set(g, {box, area_of(box), static_cast<int32_t>(g)});
    }
  });
  with_strided<2>(boxes, [&](const auto& view) {
    constexpr int64_t kBlock = 64;
    const int64_t blocks = (rows + kBlock - 1) / kBlock;
    for_each_unit(blocks, threads_for(blocks, rows * columns), [&](int64_t block, int64_t) {
      for (int64_t j = block * kBlock; j < std::min(rows, (block + 1) * kBlock); ++j)
        iou_with_all(load(view, j), others.view(0, columns), iou + j * columns);
    });
  });
  return result;
}

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) { m.impl("box_iou", MGASSIGN_OPERATOR(box_iou_cpu)); }
