// The points of one level, described instead of stored, and which of them lie inside an interval.
#pragma once

#include "boxes.h"

namespace mgassign {

// Where the rows (or columns) of a level lie, in pixels.
struct Axis {
  float spacing, offset;

  MGASSIGN_HD float coordinate(int64_t k) const { return static_cast<float>(k) * spacing + offset; }
};

struct Level {
  int64_t height, width;
  int64_t first_point;  // of this level, within the image
  double stride;        // the unit of centre sampling, unrounded; points lie apart as the axes say
  Axis y, x;
  float lo, hi;  // range of max(l, t, r, b) this level is made for, both ends inclusive

  MGASSIGN_HD bool accepts(float longest) const { return (lo <= longest) & (longest <= hi); }

  // Of a point of this level, numbered within the image.
  MGASSIGN_HD Location location_of(int64_t point) const {
    const uint32_t place = static_cast<uint32_t>(point - first_point), across = static_cast<uint32_t>(width);
    return {x.coordinate(place % across), y.coordinate(place / across)};
  }

  // Exact, not an estimate: a point strictly inside a box sees max(l, t, r, b) between half the box's
  // longer side and the whole of it, and rounding does not change the order of the two. (Sides beyond float count as
  // its largest number: half of that is less than half of theirs.)
  MGASSIGN_HD bool may_accept_inside(float width_of_box, float height_of_box) const {
    const float longer_side = larger(width_of_box, height_of_box);
    return (lo <= longer_side) & (smaller(longer_side, kLargestFloat) * 0.5f <= hi);
  }
};

struct Span {
  int64_t begin, end;  // half open
};

// The rows (or columns), of `count`, whose coordinate lies between low and high, farther from each than a margin.
// The estimate by division may be one off; the comparisons that define "between" have the last word.
MGASSIGN_HD Span strictly_between(const Axis& axis, int64_t count, float low, float high, float margin = 0.0f) {
  const float last = static_cast<float>(count);
  const float from = (low - axis.offset) / axis.spacing;
  int64_t begin = from > 0.0f ? (from < last ? static_cast<int64_t>(from) : count) : 0;
  while (begin > 0 && axis.coordinate(begin - 1) - low > margin) --begin;
  while (begin < count && !(axis.coordinate(begin) - low > margin)) ++begin;

  const float to = (high - axis.offset) / axis.spacing;
  int64_t end = to > 0.0f ? (to < last ? static_cast<int64_t>(to) : count) : 0;
  if (end < begin) end = begin;
  while (end < count && high - axis.coordinate(end) > margin) ++end;
  while (end > begin && !(high - axis.coordinate(end - 1) > margin)) --end;
  return {begin, end};
}

}  // namespace mgassign
