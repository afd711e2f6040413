// The steps that operators share: which objects an image has, how points are dealt to warps, and who stands for
// what. selection.cu defines the selection that several end with.
#pragma once

#include "../math/centerness.h"
#include "../math/order.h"
#include "common.cuh"

namespace mgassign::cuda {

// Of no NaN; which zero of two does not matter. One integer reduction where there is one, of an order-preserving key.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
__device__ inline float smallest_of_warp(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2)
    value = smaller_number(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}
__device__ inline float largest_of_warp(float value) { return -smallest_of_warp(-value); }
#else
__device__ inline float smallest_of_warp(float value) {
  return unordered(__reduce_min_sync(kAllLanes, ordered(value)));
}
__device__ inline float largest_of_warp(float value) { return unordered(__reduce_max_sync(kAllLanes, ordered(value))); }
#endif

// The bits that any lane has.
__device__ inline uint32_t any_bits_of_warp(uint32_t bits) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  for (int step = kWarp / 2; step > 0; step /= 2) bits |= __shfl_xor_sync(kAllLanes, bits, step);
  return bits;
#else
  return __reduce_or_sync(kAllLanes, bits);
#endif
}

__device__ inline Box bounds_of_warp(const Box& box, bool valid) {
  return {smallest_of_warp(valid ? box.x1 : kInfinity), smallest_of_warp(valid ? box.y1 : kInfinity),
          largest_of_warp(valid ? box.x2 : -kInfinity), largest_of_warp(valid ? box.y2 : -kInfinity)};
}

// Images of one launch: their object offsets travel as a kernel argument. Larger batches take several.
constexpr int kMaxImages = 256;

// Which rows of gt_boxes are the objects of an image, in any of the three forms.
struct ObjectRows {
  int64_t num_rows;        // N, of all images
  const int64_t* offsets;  // jagged: in device memory, so their values are not to be trusted
  int64_t per_image;       // padded: G
  int64_t first_image;     // of this launch
  bool listed;             // a list: row_of[image - first_image] is the first
  int32_t row_of[kMaxImages + 1];

  struct Rows {
    int64_t first;
    int32_t count;
  };

  __device__ Rows of(int64_t image) const {
    if (listed) {
      const int64_t i = image - first_image;
      return {row_of[i], row_of[i + 1] - row_of[i]};
    }
    if (!offsets) return {image * per_image, static_cast<int32_t>(per_image)};
    const int64_t first = within(offsets[image], 0);
    return {first, static_cast<int32_t>(within(offsets[image + 1], first) - first)};
  }

  // The image of a row, among `images` of this launch; -1 for none of them.
  __device__ int64_t image_of(int64_t row, int32_t images) const {
    if (!listed && !offsets) {
      const int64_t image = row / per_image;
      return image >= first_image && image < first_image + images ? image : -1;
    }
    int32_t low = 0, high = images;  // the first image that begins beyond the row
    while (low < high) {
      const int32_t middle = (low + high) / 2;
      if ((listed ? row_of[middle] : offsets[first_image + middle]) > row)
        high = middle;
      else
        low = middle + 1;
    }
    if (low == 0) return -1;
    const int64_t image = first_image + low - 1;
    const Rows rows = of(image);
    return row < rows.first + rows.count && row >= rows.first ? image : -1;
  }

  __device__ int64_t within(int64_t offset, int64_t least) const {
    return offset < least ? least : (offset > num_rows ? num_rows : offset);
  }
};

// The objects of a batch, as the launches need them.
class ObjectBatch {
 public:
  ObjectBatch(const Tensor& gt_boxes, const std::optional<Tensor>& gt_offsets,
              const std::optional<std::vector<int64_t>>& gt_counts)
      : num_images_(check_objects(gt_boxes, gt_offsets, gt_counts)) {
    const bool padded = !gt_offsets && !gt_counts;
    rows_.num_rows = gt_boxes.numel() / 4;
    rows_.offsets = gt_offsets ? gt_offsets->const_data_ptr<int64_t>() : nullptr;
    rows_.per_image = padded ? gt_boxes.size(1) : 0;
    rows_.listed = gt_counts.has_value();
    if (gt_counts) check_rows(listed_ = count_rows(gt_boxes, gt_counts), gt_boxes);
    check(!padded || rows_.per_image <= std::numeric_limits<int32_t>::max(),
          "gt_boxes: expected fewer than 2^31 objects in an image, got ", rows_.per_image);
    largest_image_ = padded ? rows_.per_image : (gt_counts ? 0 : rows_.num_rows);
    for (size_t b = 1; b < listed_.size(); ++b) largest_image_ = std::max(largest_image_, listed_[b] - listed_[b - 1]);
  }

  // One image of `num_objects` objects.
  explicit ObjectBatch(int64_t num_objects) : num_images_(1), largest_image_(num_objects) {
    rows_.num_rows = rows_.per_image = num_objects;
  }

  int64_t num_images() const { return num_images_; }
  int64_t num_objects() const { return rows_.num_rows; }
  // At least as many objects as any image has.
  int64_t largest_image() const { return largest_image_; }
  // About as many as the fuller images have: of jagged tensors, whose offsets only the GPU knows, twice the mean.
  int64_t full_image() const {
    if (!rows_.offsets || num_images_ == 0) return largest_image_;
    return std::min(largest_image_, 2 * ((rows_.num_rows + num_images_ - 1) / num_images_));
  }
  // Calls body(rows, number of images) for each launch that the batch needs.
  template <typename Body>
  void for_each_launch(const Body& body) const {
    for (int64_t first = 0; first < num_images_; first += kMaxImages) {
      const int64_t count = std::min<int64_t>(kMaxImages, num_images_ - first);
      ObjectRows rows = rows_;
      rows.first_image = first;
      if (rows.listed)
        for (int64_t i = 0; i <= count; ++i) rows.row_of[i] = static_cast<int32_t>(listed_[first + i]);
      body(rows, static_cast<unsigned>(count));
    }
  }

 private:
  int64_t num_images_;
  ObjectRows rows_ = {};
  std::vector<int64_t> listed_;
  int64_t largest_image_;
};

// A warp works on a tile of 8 x 4 neighbouring points, one each: they share most objects.
constexpr int kTileColumns = 8;
constexpr int kTileRows = kWarp / kTileColumns;

inline int64_t tiles_of(const Level& level) {
  return ((level.width + kTileColumns - 1) / kTileColumns) * ((level.height + kTileRows - 1) / kTileRows);
}

inline int64_t tiles_of(const Grid& grid) {
  int64_t tiles = 0;
  for (const Level& level : grid.levels) tiles += tiles_of(level);
  return tiles;
}

// The point a lane works on, and the ground its tile covers.
struct Place {
  bool exists;  // tiles overhang the level's edges
  int level;
  int32_t point;  // of the image
  Location at;
  Box tile;  // from the first point to the last
};

// A tile beyond the last lies below the last level's points: it has none.
__device__ inline Place place_of(const Levels& levels, uint32_t tile, int lane) {
  for (int i = 0;; ++i) {
    const Level& level = levels.level[i];
    // 32 bits are enough for every index within an image, and divide many times faster.
    const uint32_t height = static_cast<uint32_t>(level.height), width = static_cast<uint32_t>(level.width);
    const uint32_t across = (width + kTileColumns - 1) / kTileColumns;
    const uint32_t here = across * ((height + kTileRows - 1) / kTileRows);
    if (tile >= here && i + 1 < levels.count) {
      tile -= here;
      continue;
    }
    const uint32_t first_row = tile / across * kTileRows, first_column = tile % across * kTileColumns;
    const uint32_t row = first_row + lane / kTileColumns, column = first_column + lane % kTileColumns;
    const uint32_t last_row = (first_row + kTileRows < height ? first_row + kTileRows : height) - 1;
    const uint32_t last_column = (first_column + kTileColumns < width ? first_column + kTileColumns : width) - 1;
    return {row < height && column < width,
            i,
            static_cast<int32_t>(level.first_point + row * width + column),
            {level.x.coordinate(column), level.y.coordinate(row)},
            {level.x.coordinate(first_column), level.y.coordinate(first_row), level.x.coordinate(last_column),
             level.y.coordinate(last_row)}};
  }
}

__device__ inline bool touches(const Box& a, const Box& b) {
  return (a.x1 < b.x2) & (a.x2 > b.x1) & (a.y1 < b.y2) & (a.y2 > b.y1);
}

// An object on its way through a warp: each lane reads one and puts it into shared memory, from where all lanes take
// it. One wide read for all, where a shuffle would be one for each member.
struct alignas(16) Object {
  Box box;
  float area;
  int32_t index;  // within its image
  int64_t logit;  // where its class's logit is, seen from a point's first; -1 where there is no such class
};

// Four reads, not one of 16 bytes: a view into a larger buffer need not be aligned to that.
__device__ inline Box object_box(const float* gt_boxes, int64_t row) {
  const float* const at = gt_boxes + 4 * row;
  return {at[0], at[1], at[2], at[3]};
}

// How many of these lanes come before one.
__device__ inline int lanes_before(int lane, unsigned lanes) { return __popc(lanes & ((1u << lane) - 1)); }

// Puts the objects of the lanes that say so into shared memory, each in its place. All lanes call it.
__device__ inline void put(Object* gathered, const Object& mine, bool joins, int place) {
  __syncwarp();  // no lane still looks at the ones before
  if (joins) gathered[place] = mine;
  __syncwarp();
}

// Puts them one after the other; how many.
__device__ inline int gather(Object* gathered, const Object& mine, bool joins, int lane) {
  const unsigned joining = __ballot_sync(kAllLanes, joins);
  put(gathered, mine, joins, lanes_before(lane, joining));
  return __popc(joining);
}

// The object a point stands for so far. Whatever order they come in, the outcome is the same.
struct Champion {
  float score = 0.0f;
  float area = 0.0f;
  int32_t index = -1;

  __device__ void meet(float challenger_score, float challenger_area, int32_t challenger) {
    const bool tied = challenger_score == score && index >= 0;
    if (challenger_score > score || (tied && smaller_object(challenger_area, challenger, area, index))) {
      score = challenger_score;
      area = challenger_area;
      index = challenger;
    }
  }
};

// FCOS's centre sampling: half the side of the central box on each level, in pixels.
struct CenterSampling {
  bool on;
  float reach[kMaxLevels] = {};

  CenterSampling(const Grid& grid, double center_radius) : on(center_radius > 0) {
    for (size_t i = 0; i < grid.levels.size(); ++i)
      reach[i] = static_cast<float>(center_radius * grid.levels[i].stride);
  }

  // Whether a point inside a box lies in its central box, too.
  __device__ bool is_central(const Place& place, const Box& box) const {
    if (!on) return true;
    return strictly_inside(place.at, around_center(box, reach[place.level]));
  }
};

// How far the sides of a box are from a point inside.
struct Distances {
  AxisDistances x, y;

  __device__ Distances(const Location& at, const Box& box)
      : x(axis_distances(at.x, box.x1, box.x2)), y(axis_distances(at.y, box.y1, box.y2)) {}
  __device__ float longest() const { return larger(x.longest, y.longest); }  // max(l, t, r, b)
  __device__ float centerness() const { return centerness_of(x.ratio, y.ratio); }
};

__device__ inline bool takes_part_in_contests(const Box& box, int64_t label) {
  return is_valid(box) & (label != kPadding) & (label != kRegion);
}

// Calls each(box) for the regions of an image that are boxes; without labels there are none. All lanes call it, and
// each() is called by all.
template <typename Each>
__device__ void for_each_region(const ObjectRows::Rows& rows, const float* gt_boxes, const int64_t* gt_labels, int lane,
                                const Each& each) {
  for (int32_t base = 0; gt_labels && base < rows.count; base += kWarp) {
    const int32_t mine = base + lane;
    unsigned regions = __ballot_sync(kAllLanes, mine < rows.count && gt_labels[rows.first + mine] == kRegion);
    for (; regions; regions &= regions - 1) {
      const Box region = object_box(gt_boxes, rows.first + base + __ffs(regions) - 1);
      if (is_valid(region)) each(region);
    }
  }
}

// For each point of a batch, [B, P]: the object it stands for (-1: none), its number among that object's points, its
// score. count [N]: how many points stand for each object.
struct Standing {
  int32_t *owner, *slot;
  float* score;
  int32_t* count;
};

// Lanes of the same owner count themselves together; as which of the owner's points each is counted. All lanes call it.
__device__ inline int32_t count_standing(int32_t* count, int32_t owner, int lane) {
  const unsigned owned = __ballot_sync(kAllLanes, owner >= 0);
  if (owner < 0) return -1;
  const unsigned alike = __match_any_sync(owned, owner);
  const int leader = __ffs(alike) - 1;
  int32_t before = 0;
  if (lane == leader) before = atomicAdd(&count[owner], __popc(alike));
  return __shfl_sync(owned, before, leader) + lanes_before(lane, alike);
}

// Selection: each object keeps its best points. `chosen` holds negative numbers and gets the objects' indices.
struct Selection {
  int64_t num_images, num_points;
  Quota quota;                        // of each object
  Standing standing[2] = {};          // a task each
  int64_t* chosen[2] = {};            // [B, P]
  int32_t* segments[2] = {};          // [B, P]: the points of each object, together
  int32_t* filled = nullptr;          // [tasks, B], zeros: how much of an image's segments is given away
  const int64_t* k = nullptr;         // [N]: how many points an object is to keep; or, where null,
  const int32_t* original = nullptr;  // [N]: as many as here, both held to the quota
  const int32_t* extra = nullptr;     // [N]: and how many beyond it; or null
  bool ignored = false;               // the points kept get kIgnored instead of their object
  float* iou = nullptr;               // [B, P], zeros, gets the chosen points' scores of the first task; or null
  const float* gt_boxes = nullptr;    // [N], and
  const int64_t* gt_labels = nullptr;
  int64_t* allowed = nullptr;  // [N]: how many points each object may have, told here; or all three null
  void set_task(int task, const Standing& of_points, int64_t* told, int32_t* room) {
    standing[task] = of_points;
    chosen[task] = told;
    segments[task] = room;
  }
  // What launch_selection() adds.
  int objects_per_block = 0;
  ObjectRows objects = {};
};

void launch_selection(const Queue& queue, Selection selection, const ObjectBatch& objects, int num_tasks);

}  // namespace mgassign::cuda
