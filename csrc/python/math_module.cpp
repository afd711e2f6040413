// csrc/math for Python, without torch: what the tests hold against float64, and what the sanitizers run.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <limits>

#include "../math/boxes.h"
#include "../math/centerness.h"
#include "../math/grid.h"
#include "../math/order.h"

namespace py = pybind11;
using namespace mgassign;

namespace {

// The first x in [begin, end), in steps of one float32, at which f decreases; NaN where it never does.
template <typename Function>
float first_decrease(float begin, float end, Function f) {
  for (float x = begin, last = f(begin); x < end;) {
    // The next float32: away from zero for positive values, towards it for negative ones.
    x = x > 0 ? float_of(bits_of(x) + 1) : x == 0 ? float_of(1) : float_of(bits_of(x) - 1);
    const float value = f(x);
    if (value < last) return x;
    last = value;
  }
  return std::numeric_limits<float>::quiet_NaN();
}

}  // namespace

PYBIND11_MODULE(mgassign_math, m) {
  m.doc() = "The scalar math of mgassign, float32 NumPy arrays in and out.";

  m.def("exp", py::vectorize(exp_f32));
  m.def("log", py::vectorize(log_f32));
  m.def("atan", py::vectorize(atan_f32));
  m.def("power", py::vectorize([](float x, double exponent) { return Power(exponent).of(x); }));
  m.def("sigmoid", py::vectorize(sigmoid_f32));
  m.def("probability", py::vectorize(probability_f32));
  m.def("amplify", py::vectorize(amplify));
  m.def("centerness", py::vectorize(centerness_of));
  m.def("iou",
        py::vectorize([](float ax1, float ay1, float ax2, float ay2, float bx1, float by1, float bx2, float by2) {
          const Box a{ax1, ay1, ax2, ay2}, b{bx1, by1, bx2, by2};
          return is_valid(a) && is_valid(b) ? iou_of(a, area_of(a), b, area_of(b)) : 0.0f;
        }));
  m.def("complete_iou",
        py::vectorize([](float ax1, float ay1, float ax2, float ay2, float bx1, float by1, float bx2, float by2) {
          const Box b{bx1, by1, bx2, by2};
          return complete_iou_of({ax1, ay1, ax2, ay2}, b, angle_of(b));
        }));
  // 1 greater, 0 close, -1 less or nothing in common: the overlap of a and b against that of a and the best one so far.
  m.def("compare", py::vectorize([](float ax1, float ay1, float ax2, float ay2, float bx1, float by1, float bx2,
                                    float by2, float best_x1, float best_y1, float best_x2, float best_y2) {
          const Box a{ax1, ay1, ax2, ay2}, b{bx1, by1, bx2, by2}, best{best_x1, best_y1, best_x2, best_y2};
          const bool huge = is_huge(area_of(a)) || is_huge(area_of(b)) || is_huge(area_of(best));
          const Overlap none, of_best = is_valid(best) ? overlap_of(a, area_of(a), best, area_of(best)) : none;
          const Comparison result =
              compare(overlap_of(a, area_of(a), b, area_of(b)), of_best, huge ? kInfinity : kDoubt);
          return result.greater() ? 1 : result.close() ? 0 : -1;
        }));

  m.def("exp_first_decrease", [](float begin, float end) { return first_decrease(begin, end, exp_f32); });
  m.def("log_first_decrease", [](float begin, float end) { return first_decrease(begin, end, log_f32); });

  m.def("strictly_between", [](int64_t count, float spacing, float offset, float low, float high) {
    const Span span = strictly_between({spacing, offset}, count, low, high);
    return py::make_tuple(span.begin, span.end);
  });
  m.def("may_accept_inside", [](float lo, float hi, float width, float height) {
    return Level{0, 0, 0, 1, {1, 0}, {1, 0}, lo, hi}.may_accept_inside(width, height);
  });
  m.def("smaller_object", &smaller_object);
  m.def("ranks_before", [](float score_a, int32_t point_a, float score_b, int32_t point_b) {
    return ranks_before(ScoredPoint{score_a, point_a}, ScoredPoint{score_b, point_b});
  });
}
