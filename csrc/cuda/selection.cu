// Selection: each point stands for an object, which it has been given a place among the points of; each object keeps
// its k best points. mutual_guidance_assign.cu, anchor_mutual_guidance_assign.cu and topk_per_object.cu end with it.
//
// A block works for up to 32 objects of an image and a task. It reads the owners of all points and puts those of its
// objects together, each object's in a segment. A warp keeps the best of a segment of up to 64 points, two to a lane,
// told apart bit by bit. Of larger ones the block finds the range of scores where the k-th best lies, digit by digit
// and for all at once, until a warp can do the rest.
//
// Own code, not CUB: segments are of any number and length, known on the device alone, and only the k-th
// largest of each is wanted, not their order.
#include "steps.cuh"

namespace mgassign::cuda {

namespace {

constexpr int kWarps = 16;  // of a block
constexpr int kThreads = kWarps * kWarp;
constexpr int kBlocks = kTuring ? 2 : 3;  // on a multiprocessor, where they select: leaves the 40 registers it needs
constexpr int kObjects = kWarp;           // of a block: one a lane where their segments are laid out
constexpr int kAtOnce = 4;                // owners that a thread reads
constexpr int kFew = 2 * kWarp;           // points that a warp chooses from by itself
constexpr int kDigits = 256;
constexpr int kDigitBits = 8;

// Where k-th best scores are sought first: 256 digits tell apart 16 scores from each power of two down to 2^-16 to the
// next, up to 1. If it is none of these: among all keys.
constexpr uint64_t kUsualLow = 0x37800000ull << 32;
constexpr int kUsualWidth = 59, kFullWidth = 63;

// How many points an object may keep.
__device__ int64_t quota_of(const Selection& s, int64_t row) {
  return s.quota.of(s.k ? s.k[row] : s.original[row]) + (s.extra ? s.extra[row] : 0);
}

__device__ int32_t sum_of_lanes_below(int32_t value, int lane) {
  int32_t sum = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const int32_t other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += other;
  }
  return sum - value;
}

// The points of an object, together.
struct alignas(16) Segment {
  int32_t* points;
  int32_t count;
};

// The objects of a block and the points that stand for them.
struct alignas(16) Group {
  Segment segment[kObjects];
  int32_t runs_before[kObjects];  // a run is up to 32 points of a large segment, a warp's work
  // The k-th best is one of the keys from `low` on, of a range 2^width wide: so many of the segment are inside it, and
  // so many of these are kept, with all above it.
  uint64_t low[kObjects];
  int32_t width[kObjects], inside[kObjects], kept[kObjects];
  int32_t above[kObjects];   // the usual range
  int32_t listed[kObjects];  // of those inside, a few, in the end
  int32_t digits[kObjects]
                [kDigits];  // how many of those inside have this digit; in the end they themselves: see list()

  __device__ bool is_large(int object) const { return segment[object].count > kFew; }
  __device__ bool is_open(int object) const { return kept[object] < inside[object]; }
  __device__ uint64_t* list(int object) { return reinterpret_cast<uint64_t*>(digits[object]); }
};
static_assert(kFew * sizeof(uint64_t) <= kDigits * sizeof(int32_t));

// The scores of an image's points.
struct Scores {
  const float* of_points;
  uint32_t num_points;

  // 0 where there is no point.
  __device__ uint64_t key_of(uint32_t point) const {
    return point < num_points ? rank_key(of_points[point], point) : 0;
  }
};

// Calls each(object, key) for the points of all large segments that are asked for, an object at a time.
template <typename Asked, typename Each>
__device__ void for_each_point(const Group& group, int32_t num_runs, const Scores& scores, const Asked& asked,
                               const Each& each) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int32_t run = warp; run < num_runs; run += kWarps) {
    // The last one that begins no later: those without runs begin where the next one does.
    const int object = __popc(__ballot_sync(kAllLanes, group.runs_before[lane] <= run)) - 1;
    if (!asked(object)) continue;
    const int32_t i = (run - group.runs_before[object]) * kWarp + lane;
    const Segment segment = group.segment[object];
    if (i < segment.count) each(object, scores.key_of(segment.points[i]));
  }
}

__device__ int shift_of(int width) { return width > kDigitBits ? width - kDigitBits : 0; }

// Narrows the range of an object's k-th best point by a digit. A warp's work.
__device__ void choose_digit(Group& group, int object, int shift, int lane) {
  // A lane looks at a few digits, the first lane at the largest ones.
  constexpr int kDigitsOfLane = kDigits / kWarp;
  const int32_t* const digits = group.digits[object];
  const int32_t k = group.kept[object] - group.above[object];
  int digit = kDigits - 1 - lane * kDigitsOfLane;
  int32_t in_lane = 0;
  for (int i = 0; i < kDigitsOfLane; ++i) in_lane += digits[digit - i];
  int32_t before = sum_of_lanes_below(in_lane, lane);
  const unsigned reached = k > 0 ? __ballot_sync(kAllLanes, before + in_lane >= k) : 0;
  __syncwarp();  // all have read what is written now
  if (lane == 0) group.above[object] = 0;
  if (reached == 0) {
    if (lane == 0) {
      group.low[object] = 0;
      group.width[object] = kFullWidth;
    }
  } else if (lane == __ffs(reached) - 1) {
    while (before + digits[digit] < k) before += digits[digit--];
    group.low[object] += static_cast<uint64_t>(digit) << shift;
    group.width[object] = shift;
    group.inside[object] = digits[digit];
    group.kept[object] = k - before;
  }
}

// Calls keep(key) for the k best of the keys of a warp, kEach to a lane, of which those that are 0 are none.
template <int kEach, typename Keep>
__device__ void keep_best(const uint64_t (&key)[kEach], int32_t k, int lane, const Keep& keep) {
  unsigned open[kEach], kept[kEach];  // lanes
  int32_t num_open = 0;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    open[e] = __ballot_sync(kAllLanes, key[e] != 0);
    kept[e] = 0;
    num_open += __popc(open[e]);
  }
  // From the highest bit on: of those that are alike so far, who has it is better than who has not.
  for (int half = 1; half >= 0 && k < num_open; --half) {
    uint32_t word[kEach], ones = 0, zeros = 0;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      word[e] = static_cast<uint32_t>(key[e] >> (32 * half));
      if (open[e] >> lane & 1) ones |= word[e], zeros |= ~word[e];
    }
    const uint32_t differs = any_bits_of_warp(ones) & any_bits_of_warp(zeros);
    for (uint32_t bit = differs ? 1u << (31 - __clz(differs)) : 0; bit; bit >>= 1) {
      unsigned with[kEach];
      int32_t num_with = 0;
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        with[e] = __ballot_sync(kAllLanes, (word[e] & bit) != 0) & open[e];
        num_with += __popc(with[e]);
      }
      const bool all_kept = num_with <= k;
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        kept[e] |= all_kept ? with[e] : 0;
        open[e] = all_kept ? open[e] ^ with[e] : with[e];
      }
      num_open = all_kept ? num_open - num_with : num_with;
      k -= all_kept ? num_with : 0;
      if (k == 0 || k == num_open) break;
    }
    if (k == 0) num_open = 0;
  }
#pragma unroll
  for (int e = 0; e < kEach; ++e)
    if ((kept[e] | (num_open ? open[e] : 0)) >> lane & 1) keep(key[e]);
}

__global__ void __launch_bounds__(kThreads, kBlocks) select_kernel(const __grid_constant__ Selection s) {
  __shared__ Group group;
  __shared__ int32_t num_runs;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t image = s.objects.first_image + blockIdx.y;
  const int task = blockIdx.z;
  const ObjectRows::Rows rows = s.objects.of(image);
  const int64_t first_point = image * s.num_points;
  const int32_t* const owner = s.standing[task].owner + first_point;
  const int32_t* const slot = s.standing[task].slot + first_point;
  const int32_t* const standing = s.standing[task].count + rows.first;
  const bool aligned = reinterpret_cast<uintptr_t>(owner) % sizeof(int4) == 0;
  const int size = s.objects_per_block;
  const uint32_t num_points = static_cast<uint32_t>(s.num_points);  // fewer than 2^31
  const Scores scores{s.standing[task].score + first_point, num_points};

  // Row by row, whatever the offsets of images say: untrue ones leave none out.
  if (s.allowed && task == 0 && s.objects.first_image == 0) {
    const int64_t blocks = static_cast<int64_t>(gridDim.x) * gridDim.y, block = blockIdx.y * gridDim.x + blockIdx.x;
#pragma unroll 1  // hardly a thread has two rows, and four at once take more registers than there are
    for (int64_t row = block * kThreads + threadIdx.x; row < s.objects.num_rows; row += blocks * kThreads)
      s.allowed[row] = takes_part_in_contests(object_box(s.gt_boxes, row), s.gt_labels[row]) ? quota_of(s, row) : 0;
  }

  for (int64_t first = blockIdx.x * size; first < rows.count; first += static_cast<int64_t>(gridDim.x) * size) {
    const int64_t mine = first + lane;  // a lane is an object where segments are laid out
    if (warp == 0) {
      const bool exists = lane < size && mine < rows.count;
      const int32_t all = exists ? standing[mine] : 0;
      const int32_t before = sum_of_lanes_below(all, lane);
      int32_t start = 0;
      if (lane == kWarp - 1) start = atomicAdd(&s.filled[task * s.num_images + image], before + all);
      const int64_t begin = static_cast<int64_t>(__shfl_sync(kAllLanes, start, kWarp - 1)) + before;
      // Untrue offsets let images share objects, whose counts are then too high for either.
      const int64_t room = begin >= 0 && begin < num_points ? num_points - begin : 0;
      const int32_t count = static_cast<int32_t>(all < room ? all : room);
      const int64_t quota = count > 0 ? quota_of(s, rows.first + mine) : 0;
      const int32_t k = static_cast<int32_t>(quota < count ? (quota > 0 ? quota : 0) : count);
      const int32_t runs = count > kFew && k > 0 ? (count + kWarp - 1) / kWarp : 0;
      group.segment[lane] = {s.segments[task] + first_point + begin, count};
      group.runs_before[lane] = sum_of_lanes_below(runs, lane);
      if (lane == kWarp - 1) num_runs = group.runs_before[lane] + runs;
      group.low[lane] = k < count ? kUsualLow : 0;
      group.width[lane] = k < count ? kUsualWidth : kFullWidth;
      group.inside[lane] = count;
      group.kept[lane] = k;
      group.above[lane] = group.listed[lane] = 0;
    }
    __syncthreads();

    // What no point takes holds none.
    if (s.objects.offsets) {
      for (int object = warp; object < size; object += kWarps)
        for (int32_t i = lane; i < group.segment[object].count; i += kWarp) group.segment[object].points[i] = -1;
      __syncthreads();
    }
    const auto member_of = [&](int32_t object) { return static_cast<uint32_t>(object - static_cast<int32_t>(first)); };
    const auto put = [&](uint32_t member, uint32_t j) {
      if (member >= static_cast<uint32_t>(size)) return;
      const Segment segment = group.segment[member];
      const int32_t place = slot[j];  // nobody's points have none
      if (place < segment.count) segment.points[place] = static_cast<int32_t>(j);
    };
    const uint32_t in_fours = aligned ? num_points / kAtOnce * kAtOnce : 0;
    for (uint32_t j = kAtOnce * threadIdx.x; j < in_fours; j += kAtOnce * kThreads) {
      const int4 owners = *reinterpret_cast<const int4*>(owner + j);
      const uint32_t x = member_of(owners.x), y = member_of(owners.y), z = member_of(owners.z), w = member_of(owners.w);
      if (min(min(x, y), min(z, w)) >= static_cast<uint32_t>(size)) continue;
      put(x, j);
      put(y, j + 1);
      put(z, j + 2);
      put(w, j + 3);
    }
    for (uint32_t j = in_fours + threadIdx.x; j < num_points; j += kThreads) put(member_of(owner[j]), j);
    __syncthreads();

    // Digit by digit, until few points are left that may be the k-th best of their object, or all of them are kept. No
    // two points have one key: where many are in a range that holds a single one, they are places that none took.
    const auto narrows = [&](int object) {
      return group.is_open(object) & (group.inside[object] > kFew) & (group.kept[object] > 0) &
             (group.width[object] > 0);
    };
    while (__ballot_sync(kAllLanes, narrows(lane)) != 0) {
      for (int object = warp; object < size; object += kWarps) {
        if (!narrows(object)) continue;
        int4* const digits = reinterpret_cast<int4*>(group.digits[object]);
        for (int i = lane; i < kDigits / 4; i += kWarp) digits[i] = make_int4(0, 0, 0, 0);
      }
      __syncthreads();
      for_each_point(group, num_runs, scores, narrows, [&](int object, uint64_t key) {
        if (key < group.low[object]) return;
        const uint64_t digit = (key - group.low[object]) >> shift_of(group.width[object]);
        if (digit < kDigits)
          atomicAdd(&group.digits[object][digit], 1);
        else if (group.width[object] == kUsualWidth)  // those above a narrower range are known
          atomicAdd(&group.above[object], 1);
      });
      __syncthreads();
      for (int object = warp; object < size; object += kWarps)
        if (narrows(object)) choose_digit(group, object, shift_of(group.width[object]), lane);
      __syncthreads();
    }

    const auto keep = [&](int object, uint64_t key) {
      const int64_t at = first_point + point_of_key(key);
      s.chosen[task][at] = s.ignored ? kIgnored : first + object;
      if (task == 0 && s.iou) s.iou[at] = score_of_key(key);
    };
    for_each_point(
        group, num_runs, scores, [](int) { return true; },
        [&](int object, uint64_t key) {
          if (key < group.low[object] || key == 0) return;
          if (!group.is_open(object) || (key - group.low[object]) >> group.width[object] != 0)
            keep(object, key);
          else
            group.list(object)[atomicAdd(&group.listed[object], 1)] = key;
        });
    __syncthreads();
    for (int object = warp; object < size; object += kWarps) {
      const bool large = group.is_large(object);
      const int32_t count = large ? group.listed[object] : group.segment[object].count, k = group.kept[object];
      if (count == 0 || k == 0) continue;
      const auto key_at = [&](int32_t i) {
        return i >= count ? 0 : large ? group.list(object)[i] : scores.key_of(group.segment[object].points[i]);
      };
      const auto keep_own = [&](uint64_t key) { keep(object, key); };
      if (count <= kWarp)
        keep_best<1>({key_at(lane)}, k, lane, keep_own);
      else
        keep_best<2>({key_at(lane), key_at(kWarp + lane)}, k, lane, keep_own);
    }
    __syncthreads();  // before the next group lays out its segments
  }
}

}  // namespace

void launch_selection(const Queue& queue, Selection selection, const ObjectBatch& objects, int num_tasks) {
  if (objects.num_objects() == 0) return;
  // Every block reads the owners of all points: few objects to a block only where a large GPU would be idle else.
  constexpr int64_t kEnoughBlocks = 128;
  const int64_t contests = num_tasks * objects.num_images() * objects.full_image();
  selection.objects_per_block = kObjects;
  while (selection.objects_per_block > 1 && contests < kEnoughBlocks * selection.objects_per_block)
    selection.objects_per_block /= 2;
  // Blocks take several groups of objects where an image has more than these.
  constexpr unsigned kMostGroups = 128;
  const unsigned groups = std::min(kMostGroups, blocks_for(objects.full_image(), selection.objects_per_block));
  objects.for_each_launch([&](const ObjectRows& rows, unsigned images) {
    selection.objects = rows;
    queue.launch(select_kernel, dim3(groups, images, num_tasks), kThreads, selection);
  });
}

}  // namespace mgassign::cuda
