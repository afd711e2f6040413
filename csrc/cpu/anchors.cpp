#include "anchors.h"

namespace mgassign::cpu {

namespace {

constexpr int64_t kTogether = 16;

MGASSIGN_VECTOR void fit(const BoxTile& tile, const Objects& objects, const int32_t* places, int64_t count,
                         TileFit& fit, float* highest) {
  compete(
      tile, objects, places, count, fit, [](const Object&, int) { return true; },
      [&](int64_t k, const float* overlap) {
        float* const known = highest + int64_t{places[k]} * kTilePoints;
        for (int i = 0; i < kTilePoints; ++i) known[i] = larger(known[i], overlap[i]);
      });
}

// The sides of what boxes of an extent may have in common with an object; not above 0 where there is nothing.
struct Common {
  float width, height;
};

MGASSIGN_INLINE Common common_with(const Extent& extent, const Boxes& objects, int64_t k) {
  return {smaller_number(extent.bounds.x2, objects.x2[k]) - larger_number(extent.bounds.x1, objects.x1[k]),
          smaller_number(extent.bounds.y2, objects.y2[k]) - larger_number(extent.bounds.y1, objects.y1[k])};
}

// What overlaps of boxes of this extent with each object that touches it cannot exceed; infinity where they may be the
// highest known, or more.
MGASSIGN_VECTOR void bound_overlaps(const Extent& extent, const Boxes& objects, const float* known, float* bound) {
  for (int64_t k = 0; k < objects.count; ++k) {
    const auto [width, height] = common_with(extent, objects, k);
    const float common = smaller(width * height, extent.most_area);
    const float highest = common / larger(objects.area[k], extent.least_area) * (1.0f / kWideRoom);
    bound[k] = chosen(highest >= without_tiny(known[k]), kInfinity, highest);
  }
}

MGASSIGN_VECTOR float least_score(const TileFit& fit) {
  float least[kTilePoints];
  std::copy_n(fit.score, kTilePoints, least);
  for (int half = kTilePoints / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) least[i] = smaller(least[i], least[i + half]);
  return without_tiny(least[0]);
}

// Of `count` objects, whose overlaps at the places of a tile stand one after another.
MGASSIGN_VECTOR void highest_of_each(const float* overlaps, const int32_t* objects, int64_t count, float* highest) {
  for (int64_t k = 0; k < count; ++k) {
    float most[kTilePoints];
    std::copy_n(overlaps + int64_t{objects[k]} * kTilePoints, kTilePoints, most);
    for (int half = kTilePoints / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) most[i] = larger(most[i], most[i + half]);
    highest[k] = most[0];
  }
}

}  // namespace

void load_tiles(const Block& block, const Floats& boxes, int64_t offset, int64_t point_step, int64_t side_step,
                BoxTile* tiles) {
  for (int64_t t = 0; t < block.num_tiles(); ++t) {
    const int64_t first = t * kTilePoints;
    const int count = static_cast<int>(std::min<int64_t>(kTilePoints, block.count - first));
    boxes.read_boxes(offset + (block.first + first) * point_step, point_step, side_step, count, tiles[t].sides(0));
    tiles[t].prepare(count);
  }
}

BlockWorkspace::BlockWorkspace(int64_t most_objects)
    : near(most_objects),
      needed(most_objects + kLanes),
      found(most_objects + 1),
      highest(most_objects * kTilePoints),
      known(most_objects),
      may_lead(most_objects),
      bound(most_objects + kLanes),
      tiles(kTilesOfBlock) {}

Objects BlockWorkspace::take_near(const Objects& objects, int64_t count, const float* needed_by) {
  for (int64_t k = 0; k < count; ++k) near.set(k, objects[found[k]]);
  for (int64_t k = 0; needed_by && k < count; ++k) needed[k] = needed_by[found[k]];
  return near.view(0, count);
}

void compete_for_block(const Block& block, const Objects& objects, BlockWorkspace& workspace, int64_t* owner,
                       float* score, BestPlaces& best, int64_t first_row) {
  int32_t* const found = workspace.found.data();
  const Objects near = workspace.take_near(objects, touching(block.extent().bounds, objects, found));
  float *const highest = workspace.highest.data(), *const known = workspace.known.data(),
               *const bound = workspace.bound.data();
  std::fill_n(highest, near.count * kTilePoints, 0.0f);
  uint8_t* const may_lead = workspace.may_lead.data();
  for (int64_t k = 0; k < near.count; ++k) {
    known[k] = best.of(first_row + near.index[k]).score;
    may_lead[k] = near.count <= kTogether;  // else tiles tell
  }
  block.for_each_tile([&](const BoxTile& tile, int64_t first, int64_t count) {
    TileFit of_tile;
    of_tile.clear();
    const int64_t num_touching = touching(tile.extent.bounds, near, found);
    int64_t waiting = num_touching;
    // Many come a few at a time. What by then all boxes of the tile have, and an object has elsewhere, others may not
    // be able to reach: large objects, where they come last.
    if (num_touching > kTogether) {
      bound_overlaps(tile.extent, near, known, bound);
      float least = 0.0f;
      waiting = 0;
      for (int64_t n = 0; n < num_touching; ++n) {
        const int32_t k = found[n];
        found[waiting] = k;
        waiting += bound[k] >= least;
        may_lead[k] |= bound[k] == kInfinity;
        if (waiting < kTogether) continue;
        fit(tile, near, found, waiting, of_tile, highest);
        least = least_score(of_tile);
        waiting = 0;
      }
    } else if (near.count > kTogether) {
      for (int64_t n = 0; n < num_touching; ++n) may_lead[found[n]] = 1;
    }
    fit(tile, near, found, waiting, of_tile, highest);
    for (int64_t i = 0; i < count; ++i) {
      owner[first + i] = of_tile.owner[i];
      score[first + i] = of_tile.score[i];
    }
  });
  int64_t num_leading = 0;
  for (int32_t k = 0; k < near.count; ++k) {
    found[num_leading] = k;
    num_leading += may_lead[k];
  }
  float* const here = bound;  // which no tile needs any more
  highest_of_each(highest, found, num_leading, here);
  for (int64_t n = 0; n < num_leading; ++n)
    if (here[n] > 0.0f) best.raise(first_row + near.index[found[n]], {here[n], static_cast<int32_t>(block.index)});
}

// An overlap is at most the area in common by either area, whatever the roundings.
MGASSIGN_VECTOR int64_t within_reach(const Extent& extent, const Boxes& objects, const float* needed, int32_t* found) {
  return find_hits(objects.count, found, [&](int64_t k) MGASSIGN_INLINE_LAMBDA {
    const auto [width, height] = common_with(extent, objects, k);
    const float share = without_tiny(needed[k]) * kWideRoom, least = share * objects.area[k];
    return (width > 0.0f) & (height > 0.0f) & (width * height >= least) & (extent.most_area >= least) &
           (objects.area[k] >= share * extent.least_area);
  });
}

MGASSIGN_VECTOR int64_t first_with(const BoxTile& tile, const Object& object, float overlap) {
  int32_t equal[kTilePoints], place = kTilePoints;
  for (int i = 0; i < kTilePoints; ++i) equal[i] = iou_with(tile, i, object) == overlap ? i : kTilePoints;
  for (int i = 0; i < kTilePoints; ++i) place = std::min(place, equal[i]);
  return place;
}

int64_t first_with(const Block& block, const Object& object, float overlap) {
  int64_t place = -1;
  block.for_each_tile([&](const BoxTile& tile, int64_t first, int64_t count) {
    if (place >= 0) return;
    const int64_t i = first_with(tile, object, overlap);
    if (i < count) place = first + i;
  });
  return place;
}

}  // namespace mgassign::cpu
