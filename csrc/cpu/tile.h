// Localize to Classify's unit of work: 32 neighbouring boxes against the objects that touch them. Most pairs of box and
// object are never looked at, since the bounding box of neighbours is small.
#pragma once

#include "steps.h"

namespace mgassign::cpu {

constexpr int kTilePoints = 32;

// Where boxes lie, and how large they are.
struct Extent {
  Box bounds = kNowhere;
  float least_area = kInfinity, most_area = 0.0f;

  void grow(const Extent& other) {
    bounds = {smaller(bounds.x1, other.bounds.x1), smaller(bounds.y1, other.bounds.y1),
              larger(bounds.x2, other.bounds.x2), larger(bounds.y2, other.bounds.y2)};
    least_area = smaller(least_area, other.least_area);
    most_area = larger(most_area, other.most_area);
  }
};

// The boxes of up to 32 neighbours. Those that are none, or not there, are empty and overlap nothing.
struct BoxTile {
  float x1[kTilePoints], y1[kTilePoints], x2[kTilePoints], y2[kTilePoints], area[kTilePoints];
  Extent extent;  // of all that are boxes

  void set(int i, const Box& box) {
    x1[i] = box.x1;
    y1[i] = box.y1;
    x2[i] = box.x2;
    y2[i] = box.y2;
  }
  Box operator[](int i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
  // From the i-th on.
  SideArrays sides(int i) { return {x1 + i, y1 + i, x2 + i, y2 + i}; }
  // Once set, the first `count` boxes are sorted out: finds areas and the extent.
  void prepare(int count);
};

// The object that each box of a tile fits best so far.
struct TileFit {
  float score[kTilePoints];
  int32_t owner[kTilePoints];

  void clear() {
    std::fill_n(score, kTilePoints, 0.0f);
    std::fill_n(owner, kTilePoints, -1);
  }
};

MGASSIGN_INLINE float iou_with(const BoxTile& tile, int i, const Object& object) {
  return iou_of(tile[i], tile.area[i], object.box, object.area);
}

// Lets the objects at the given places, in their order, compete for the boxes of a tile, those that
// may_have(object, box); note(k, overlaps) hears of all overlaps with the k-th of them.
template <typename MayHave, typename Note>
MGASSIGN_INLINE void compete(const BoxTile& tile, const Objects& objects, const int32_t* places, int64_t count,
                             TileFit& fit, const MayHave& may_have, const Note& note) {
  for (int64_t k = 0; k < count; ++k) {
    const Object object = objects[places[k]];
    float overlap[kTilePoints];
    for (int i = 0; i < kTilePoints; ++i) {
      const float iou = iou_with(tile, i, object);
      const bool better = (iou > fit.score[i]) & may_have(object, i);
#if defined(__clang__)  // which makes a masked store of the choice below: the next object's load has to wait for it
      fit.owner[i] ^= (fit.owner[i] ^ object.index) & -int32_t{better};
#else
      fit.owner[i] = better ? object.index : fit.owner[i];
#endif
      fit.score[i] = better ? iou : fit.score[i];
      overlap[i] = iou;
    }
    note(k, overlap);
  }
}

}  // namespace mgassign::cpu
