#include "floats.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace mgassign::cpu {

namespace {

// Calls body(numbers) with a pointer of the dtype's own type.
template <typename Body>
void with_numbers(const void* data, ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Half:
      return body(static_cast<const torch::headeronly::Half*>(data));
    case ScalarType::BFloat16:
      return body(static_cast<const torch::headeronly::BFloat16*>(data));
    case ScalarType::Double:
      return body(static_cast<const double*>(data));
    default:
      return body(static_cast<const float*>(data));
  }
}

template <typename Number>
MGASSIGN_HD void read_all(const Number* from, int64_t step, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i * step]);
}

template <typename Number>
MGASSIGN_HD void read_all(const Number* from, int64_t point_step, int64_t side_step, int64_t count,
                          const SideArrays& to) {
  for (int64_t i = 0; i < count; ++i) {
    const Number* const box = from + i * point_step;
    to.x1[i] = static_cast<float>(box[0]);
    to.y1[i] = static_cast<float>(box[side_step]);
    to.x2[i] = static_cast<float>(box[2 * side_step]);
    to.y2[i] = static_cast<float>(box[3 * side_step]);
  }
}

}  // namespace

float Floats::widened(int64_t offset) const {
  float number = 0.0f;
  with_numbers(data_, dtype_, [&](const auto* numbers) { number = static_cast<float>(numbers[offset]); });
  return number;
}

// Of steps known here the compiler makes vector code.
void Floats::read(int64_t offset, int64_t step, int64_t count, float* to) const {
  with_numbers(data_, dtype_, [&](const auto* numbers) {
    if (step == 1)
      read_all(numbers + offset, 1, count, to);
    else
      read_all(numbers + offset, step, count, to);
  });
}

void Floats::read(int64_t offset, int64_t step, const int32_t* places, int64_t count, float* to) const {
  with_numbers(data_, dtype_, [&](const auto* numbers) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(numbers[offset + places[i] * step]);
  });
}

void Floats::read_boxes(int64_t offset, int64_t point_step, int64_t side_step, int64_t count,
                        const SideArrays& to) const {
  with_numbers(data_, dtype_, [&](const auto* numbers) {
    if (point_step == 4 && side_step == 1)
      read_all(numbers + offset, 4, 1, count, to);
    else
      read_all(numbers + offset, point_step, side_step, count, to);
  });
}

}  // namespace mgassign::cpu
