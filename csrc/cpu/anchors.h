// Boxes in any order, anchors or what is predicted at them, against the objects of an image: what max_iou_assign.cpp
// and anchor_mutual_guidance_assign.cpp share.
//
// The unit of work is a block of 256 boxes: 8 tiles of 32 that follow one another. In the order that detectors keep
// their anchors in, these are neighbours. In another order the results are the same, but fewer pairs are spared.
#pragma once

#include "tile.h"

namespace mgassign::cpu {

constexpr int64_t kTilesOfBlock = 8;
constexpr int64_t kBlockPoints = kTilesOfBlock * kTilePoints;

inline int64_t tiles_for(int64_t num_points) { return (num_points + kTilePoints - 1) / kTilePoints; }
inline int64_t blocks_for(int64_t num_points) { return (num_points + kBlockPoints - 1) / kBlockPoints; }

// The order in which blocks compete. Detectors have their largest anchors last: once these have, it is known of large
// objects that small anchors are not their best.
inline int64_t last_first(int64_t unit, int64_t num_blocks) {
  return (unit + num_blocks - num_blocks / 16) % num_blocks;
}

// A block of the boxes of one image.
struct Block {
  int64_t index, first, count;  // which, its first box, how many it has
  const BoxTile* tiles;

  int64_t num_tiles() const { return tiles_for(count); }
  Extent extent() const {
    Extent extent;
    for (int64_t t = 0; t < num_tiles(); ++t) extent.grow(tiles[t].extent);
    return extent;
  }
  // Calls each(tile, the place of its first box in the image, its boxes).
  template <typename Each>
  void for_each_tile(const Each& each) const {
    for (int64_t t = 0; t < num_tiles(); ++t)
      each(tiles[t], first + t * kTilePoints, std::min<int64_t>(kTilePoints, count - t * kTilePoints));
  }
};

inline Block block_at(int64_t index, int64_t num_points, const BoxTile* tiles) {
  const int64_t first = index * kBlockPoints;
  return {index, first, std::min(kBlockPoints, num_points - first), tiles};
}

// Reads the boxes of a block, which lie `point_step` apart from `offset` on, into tiles.
void load_tiles(const Block& block, const Floats& boxes, int64_t offset, int64_t point_step, int64_t side_step,
                BoxTile* tiles);

// For each object of a batch the highest score and where it is first: a point, or a block of them. Threads may raise it
// at once.
class BestPlaces {
 public:
  explicit BestPlaces(int64_t num_objects) : keys_(new_values<std::atomic<uint64_t>>(num_objects)) {
    for (int64_t i = 0; i < num_objects; ++i) keys_[i] = 0;
  }
  // Scores are above 0.
  void raise(int64_t object, const ScoredPoint& best) {
    const uint64_t key = rank_key(best.score, best.point);
    uint64_t known = keys_[object].load(std::memory_order_relaxed);
    while (key > known && !keys_[object].compare_exchange_weak(known, key, std::memory_order_relaxed)) {
    }
  }
  // Of score 0 where there is none.
  ScoredPoint of(int64_t object) const {
    const uint64_t key = keys_[object].load(std::memory_order_relaxed);
    return {score_of_key(key), static_cast<int32_t>(point_of_key(key))};
  }

 private:
  std::unique_ptr<std::atomic<uint64_t>[]> keys_;
};

// Scratch space of one thread.
struct BlockWorkspace {
  ObjectArrays near;          // the objects that a block may have to do with,
  std::vector<float> needed;  // and the overlap that they need
  std::vector<int32_t> found;
  std::vector<float> highest;     // of each near object, by places in a tile
  std::vector<float> known;       // the same, of blocks that came before
  std::vector<uint8_t> may_lead;  // whether it may have more here, or as much
  std::vector<float> bound;       // of their overlaps with a tile
  std::vector<BoxTile> tiles;

  explicit BlockWorkspace(int64_t most_objects);
  // Takes those at the first `count` places that `found` holds as the near ones.
  Objects take_near(const Objects& objects, int64_t count, const float* needed = nullptr);
};

// Which object each box of a block overlaps most, -1 where there is none, and by how much; owner and score are the
// image's. Ties go to whoever comes first among the objects. `best` hears of the blocks, by the objects' rows.
void compete_for_block(const Block& block, const Objects& objects, BlockWorkspace& workspace, int64_t* owner,
                       float* score, BestPlaces& best, int64_t first_row);

// Finds the objects that boxes of this extent may overlap by what they need, 0 being any overlap and kInfinity none:
// writes their places to found, in their order; how many.
int64_t within_reach(const Extent& extent, const Boxes& objects, const float* needed, int32_t* found);

// The first box of a block that overlaps an object by `overlap`; below 0 where none does any more, since the tensor was
// written to in the meantime.
int64_t first_with(const Block& block, const Object& object, float overlap);

}  // namespace mgassign::cpu
