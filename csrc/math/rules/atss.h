// Adaptive training sample selection: an object's candidates are, of each level, the points nearest to its centre. What
// a candidate's anchor has to overlap the object by is told by the candidates themselves.
#pragma once

#include "../boxes.h"
#include "../grid.h"

namespace mgassign {

struct Atss {
  double anchor_scale;  // sides of a level's anchors, in strides
  int32_t nearest;      // candidates of a level
  int32_t side;         // of the smallest square with so many places

  // Where the nearest points of a level are among others: these rows of these columns, as far from the centre as
  // `reach`.
  struct Neighborhood {
    Span rows, columns;
    float reach;
  };

  // Exact whatever the roundings: a block of rows and columns around the centre that holds enough points shows how far
  // the nearest ones may be, and no point as near lies in a row or column that is farther by itself.
  MGASSIGN_HD Neighborhood neighborhood(const Level& level, const Location& center) const {
    if (level.height == 0 || level.width == 0 || !is_finite(center.x) || !is_finite(center.y))
      return {{0, 0}, {0, 0}, 0};
    const int64_t least_across = smaller_of(side, level.width);
    const int64_t down = smaller_of((nearest + least_across - 1) / least_across, level.height);
    const int64_t across = smaller_of((nearest + down - 1) / down, level.width);
    const int64_t row = closest(level.y, level.height, center.y), column = closest(level.x, level.width, center.x);
    const float reach = hypotenuse(farthest(level.x, level.width, center.x, column, across),
                                   farthest(level.y, level.height, center.y, row, down));
    const float beside = fabsf(level.x.coordinate(column) - center.x),
                above = fabsf(level.y.coordinate(row) - center.y);
    return {within(level.y, level.height, center.y, row, beside, reach),
            within(level.x, level.width, center.x, column, above, reach), reach};
  }

  MGASSIGN_HD static float distance(const Location& a, const Location& b) { return hypotenuse(a.x - b.x, a.y - b.y); }

  // Of a point's anchor and an object.
  MGASSIGN_HD float overlap(const Level& level, const Location& at, const Box& box, float area) const {
    const float half = static_cast<float>(0.5 * anchor_scale * level.stride);
    const Box anchor{at.x - half, at.y - half, at.x + half, at.y + half};
    return is_valid(anchor) ? iou_of(anchor, area_of(anchor), box, area) : 0.0f;
  }

  // Mean and standard deviation of the candidates' overlaps, overlap_of(i), added up in their order; NaN, which nothing
  // reaches, where there are fewer than two.
  template <typename OverlapOf>
  MGASSIGN_HD static float threshold(int32_t count, const OverlapOf& overlap_of) {
    double sum = 0.0, squares = 0.0;
    for (int32_t i = 0; i < count; ++i) sum += overlap_of(i);
    const double mean = sum / count;
    for (int32_t i = 0; i < count; ++i) {
      const double apart = overlap_of(i) - mean;
      squares += apart * apart;
    }
    return static_cast<float>(mean) + static_cast<float>(square_root(squares / (count - 1)));
  }

  // Whether a candidate is the object's, if it is nobody else's.
  MGASSIGN_HD static bool takes(const Box& box, const Location& at, float overlap, float threshold) {
    constexpr float kMargin = 0.01f;
    return overlap > 0.0f && overlap >= threshold && contains(box, at, kMargin);
  }

 private:
  MGASSIGN_HD static int64_t smaller_of(int64_t a, int64_t b) { return b < a ? b : a; }
  MGASSIGN_HD static float hypotenuse(float x, float y) { return square_root(x * x + y * y); }
  MGASSIGN_HD static float apart(const Axis& axis, int64_t k, float place) { return fabsf(axis.coordinate(k) - place); }

  // The row (or column), of `count`, that is closest to a place. The estimate has not the last word.
  MGASSIGN_HD static int64_t closest(const Axis& axis, int64_t count, float place) {
    const float estimate = (place - axis.offset) / axis.spacing;
    int64_t k =
        estimate > 0.0f ? (estimate < static_cast<float>(count) ? static_cast<int64_t>(estimate) : count - 1) : 0;
    k = smaller_of(k, count - 1);
    while (k > 0 && apart(axis, k - 1, place) <= apart(axis, k, place)) --k;
    while (k + 1 < count && apart(axis, k + 1, place) <= apart(axis, k, place)) ++k;
    return k;
  }

  // How far the farthest of `wanted` rows around the closest one is.
  MGASSIGN_HD static float farthest(const Axis& axis, int64_t count, float place, int64_t closest, int64_t wanted) {
    int64_t begin = smaller_of(closest - wanted / 2, count - wanted);
    if (begin < 0) begin = 0;
    return larger(apart(axis, begin, place), apart(axis, begin + wanted - 1, place));
  }

  // The rows in which points may be within reach that are at least `beside` away across.
  MGASSIGN_HD static Span within(const Axis& axis, int64_t count, float place, int64_t closest, float beside,
                                 float reach) {
    Span span{closest, closest + 1};
    while (span.begin > 0 && hypotenuse(beside, apart(axis, span.begin - 1, place)) <= reach) --span.begin;
    while (span.end < count && hypotenuse(beside, apart(axis, span.end, place)) <= reach) ++span.end;
    return span;
  }
};

}  // namespace mgassign
