// Competition, then selection: each point stands for its best object, each object keeps its k best points.
//
// Three launches: a memset of the counters; competition, a warp for each point, its lanes across the objects;
// selection, a block for up to 32 objects of an image and a task. The block gathers the points of its objects from the
// owners of all points, each object's together. Then it finds the score of every object's k-th best, for all at once,
// since one object may have all of the points or each a handful: warps take 32 points of one object at a time.
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
constexpr int kDigits = 256;
constexpr int kDigitBits = 8;

// Points in the order ranks_before() puts them, as one number: larger is better, no two are equal.
// Scores are above 0, where the order of floats is that of their bits.
__device__ uint64_t rank_key(float score, uint32_t point) {
  return static_cast<uint64_t>(bits_of(score)) << 32 | (0xffffffffu - point);
}
__device__ int64_t point_of(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }
__device__ float score_of(uint64_t key) { return float_of(static_cast<uint32_t>(key >> 32)); }

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

// The objects of a block and the points that stand for them.
struct alignas(16) Group {
  int32_t begin[kObjects], end[kObjects];  // of each object's segment; while it fills, up to where
  int32_t runs_before[kObjects];           // a run is up to 32 points of a segment, a warp's work
  int32_t digits[kObjects][kDigits];       // how many points have this digit next
  uint64_t least[kObjects];                // the digits so far of the k-th best; at last, all from here on are kept
  int32_t left[kObjects];                  // how many of those that begin with these digits are kept; 0: known
};

// Calls each(object, position in the segments) for the points of all objects that are asked for, an object at a time.
template <typename Asked, typename Each>
__device__ void for_each_point(const Group& group, int32_t num_runs, const Asked& asked, const Each& each) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int32_t run = warp; run < num_runs; run += kWarps) {
    // The last one that begins no later: those without points begin where the next one does.
    const int object = __popc(__ballot_sync(kAllLanes, group.runs_before[lane] <= run)) - 1;
    if (!asked(object)) continue;
    const int32_t i = group.begin[object] + (run - group.runs_before[object]) * kWarp + lane;
    if (i < group.end[object]) each(object, i);
  }
}

// Finds the next digit of an object's k-th best point. A warp's work.
__device__ void choose_digit(Group& group, int object, int shift, int lane) {
  // A lane looks at a few digits, the first lane at the largest ones.
  constexpr int kDigitsOfLane = kDigits / kWarp;
  const int32_t* const digits = group.digits[object];
  const int32_t k = group.left[object];
  int digit = kDigits - 1 - lane * kDigitsOfLane;
  int32_t in_lane = 0;
  for (int i = 0; i < kDigitsOfLane; ++i) in_lane += digits[digit - i];
  int32_t above = sum_of_lanes_below(in_lane, lane);
  const int holder = __ffs(__ballot_sync(kAllLanes, above + in_lane >= k)) - 1;
  __syncwarp();  // all have read what is written now
  if (lane != holder) return;
  while (above + digits[digit] < k) above += digits[digit--];
  group.least[object] |= static_cast<uint64_t>(digit) << shift;
  // Where all that begin like this are kept, no further digit matters. At the last one it is a single point.
  group.left[object] = digits[digit] == k - above ? 0 : k - above;
}

__global__ void __launch_bounds__(kThreads, kBlocks) topk_select_kernel(const __grid_constant__ Selection s) {
  __shared__ Group group;
  __shared__ int32_t num_runs;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t image = s.objects.first_image + blockIdx.y;
  const int task = blockIdx.z;
  const ObjectRows::Rows rows = s.objects.of(image);
  const int64_t first_point = image * s.num_points;
  const int32_t* const owner = s.standing[task].owner + first_point;
  const float* const score = s.standing[task].score + first_point;
  const int32_t* const standing = s.standing[task].count + rows.first;
  uint64_t* const segments = reinterpret_cast<uint64_t*>(s.segments[task] + first_point);
  const bool aligned = reinterpret_cast<uintptr_t>(owner) % sizeof(int4) == 0;
  const int size = s.objects_per_block;
  const uint32_t num_points = static_cast<uint32_t>(s.num_points);  // fewer than 2^31

  // Row by row, whatever the offsets of images say: untrue ones leave none out.
  if (s.allowed && task == 0 && s.objects.first_image == 0) {
    const int64_t blocks = static_cast<int64_t>(gridDim.x) * gridDim.y, block = blockIdx.y * gridDim.x + blockIdx.x;
    for (int64_t row = block * kThreads + threadIdx.x; row < s.objects.num_rows; row += blocks * kThreads)
      s.allowed[row] = takes_part_in_contests(object_box(s.gt_boxes, row), s.gt_labels[row]) ? quota_of(s, row) : 0;
  }

  for (int64_t first = blockIdx.x * size; first < rows.count; first += static_cast<int64_t>(gridDim.x) * size) {
    const int64_t mine = first + lane;  // a lane is an object where segments are laid out
    const bool exists = lane < size && mine < rows.count;
    if (warp == 0) {
      const int32_t count = exists ? standing[mine] : 0;
      const int32_t before = sum_of_lanes_below(count, lane);
      int32_t start = 0;
      if (lane == kWarp - 1) start = atomicAdd(&s.filled[task * s.num_images + image], before + count);
      group.begin[lane] = group.end[lane] = __shfl_sync(kAllLanes, start, kWarp - 1) + before;
    }
    __syncthreads();

    for (uint32_t ahead = 0; ahead < num_points; ahead += kAtOnce * kThreads) {
      const uint32_t base = ahead + kAtOnce * threadIdx.x;
      int4 four = make_int4(-1, -1, -1, -1);
      if (aligned && base + kAtOnce <= num_points) {
        four = *reinterpret_cast<const int4*>(owner + base);
      } else {
        if (base < num_points) four.x = owner[base];
        if (base + 1 < num_points) four.y = owner[base + 1];
        if (base + 2 < num_points) four.z = owner[base + 2];
        if (base + 3 < num_points) four.w = owner[base + 3];
      }
      const int32_t zeroth = static_cast<int32_t>(first);
      const int32_t members[kAtOnce] = {four.x - zeroth, four.y - zeroth, four.z - zeroth, four.w - zeroth};
      for (int i = 0; i < kAtOnce; ++i) {
        const bool wanted = static_cast<uint32_t>(members[i]) < static_cast<uint32_t>(size);
        if (__ballot_sync(kAllLanes, wanted) == 0) continue;
        // Points of one object take their places together.
        const int32_t object = wanted ? members[i] : -1;
        const unsigned alike = __match_any_sync(kAllLanes, object);
        const int leader = __ffs(alike) - 1;
        int32_t slot = 0;
        if (wanted && lane == leader) slot = atomicAdd(&group.end[object], __popc(alike));
        slot = __shfl_sync(kAllLanes, slot, leader) + __popc(alike & ((1u << lane) - 1));
        // Offsets that decrease let images share objects, whose counts are then too high for either.
        const uint32_t j = base + i;
        if (wanted && static_cast<uint32_t>(slot) < num_points) segments[slot] = rank_key(score[j], j);
      }
    }
    __syncthreads();

    if (warp == 0) {
      int64_t k = 0;
      if (exists) {
        const int64_t row = rows.first + mine;
        k = quota_of(s, row);
      }
      const int32_t all = static_cast<int32_t>(num_points);
      const int32_t end = group.end[lane] < all ? group.end[lane] : all;
      const int32_t n = k > 0 && group.begin[lane] >= 0 && end > group.begin[lane] ? end - group.begin[lane] : 0;
      const int32_t runs = (n + kWarp - 1) / kWarp;
      group.end[lane] = group.begin[lane] + n;
      group.runs_before[lane] = sum_of_lanes_below(runs, lane);
      if (lane == kWarp - 1) num_runs = group.runs_before[lane] + runs;
      group.least[lane] = 0;
      group.left[lane] = k < n ? static_cast<int32_t>(k) : 0;
    }
    __syncthreads();

    // Digit by digit from the top, until every object's k-th best is told from the next one.
    for (int shift = 64 - kDigitBits; __ballot_sync(kAllLanes, group.left[lane] > 0) != 0; shift -= kDigitBits) {
      int4* const digits = reinterpret_cast<int4*>(group.digits);
      for (int i = threadIdx.x; i < size * kDigits / 4; i += kThreads) digits[i] = make_int4(0, 0, 0, 0);
      __syncthreads();
      for_each_point(
          group, num_runs, [&](int object) { return group.left[object] > 0; },
          [&](int object, int32_t i) {
            const uint64_t key = segments[i];
            const bool goes_on = shift + kDigitBits == 64 || (key ^ group.least[object]) >> (shift + kDigitBits) == 0;
            if (goes_on) atomicAdd(&group.digits[object][key >> shift & (kDigits - 1)], 1);
          });
      __syncthreads();
      for (int object = warp; object < size; object += kWarps)
        if (group.left[object] > 0) choose_digit(group, object, shift, lane);
      __syncthreads();
    }

    for_each_point(
        group, num_runs, [](int) { return true; },
        [&](int object, int32_t i) {
          const uint64_t key = segments[i];
          if (key < group.least[object]) return;
          const int64_t at = first_point + point_of(key);
          s.chosen[task][at] = s.ignored ? kIgnored : first + object;
          if (task == 0 && s.iou) s.iou[at] = score_of(key);
        });
    __syncthreads();  // before the next group lays out its segments
  }
}

struct Competition {
  FloatView<2> scores;
  const float* areas;
  int64_t num_points, num_objects;
  int64_t* chosen;
  Standing standing;
};

__device__ void meet_from(Champion& champion, const Champion& other, int step) {
  const float score = __shfl_xor_sync(kAllLanes, other.score, step);
  const float area = __shfl_xor_sync(kAllLanes, other.area, step);
  const int32_t index = __shfl_xor_sync(kAllLanes, other.index, step);
  if (index >= 0) champion.meet(score, area, index);
}

__global__ void __launch_bounds__(kThreads) topk_compete_kernel(const __grid_constant__ Competition c) {
  const int lane = threadIdx.x % kWarp;
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (j >= c.num_points) return;
  Champion champion;
  for (int64_t g = lane; g < c.num_objects; g += kWarp)
    champion.meet(c.scores.at(j * c.scores.stride[0] + g * c.scores.stride[1]), c.areas[g], static_cast<int32_t>(g));
  for (int step = kWarp / 2; step > 0; step /= 2) meet_from(champion, champion, step);
  if (lane == 0) {
    c.chosen[j] = kBackground;
    c.standing.owner[j] = champion.index;
    c.standing.score[j] = champion.score;
    if (champion.index >= 0) atomicAdd(&c.standing.count[champion.index], 1);
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
    queue.launch(topk_select_kernel, dim3(groups, images, num_tasks), kThreads, selection);
  });
}

Tensor topk_per_object_cuda(const Tensor& scores, const Tensor& k, const Tensor& areas) {
  check_contest(scores, k, areas);
  const int64_t num_points = scores.size(0), num_objects = scores.size(1);
  check(num_objects <= std::numeric_limits<int32_t>::max(), "scores: expected fewer than 2^31 objects");
  const Queue queue(scores);
  Tensor owners = new_tensor(scores, {num_points}, ScalarType::Long);
  if (num_points == 0) return owners;

  // One workspace: 16 bytes per point, 4 per object.
  Tensor workspace = new_tensor(scores, {2 * num_points + (1 + num_objects + 1) / 2}, ScalarType::Long);
  int64_t* const segments = workspace.mutable_data_ptr<int64_t>();
  int32_t* const owner = reinterpret_cast<int32_t*>(segments + num_points);
  float* const score = reinterpret_cast<float*>(owner + num_points);
  int32_t* const filled = reinterpret_cast<int32_t*>(score + num_points);
  const Standing standing{owner, score, filled + 1};
  queue.zero(filled, (1 + num_objects) * sizeof(int32_t));

  int64_t* const chosen = owners.mutable_data_ptr<int64_t>();
  const Competition competition{
      FloatView<2>(scores), areas.const_data_ptr<float>(), num_points, num_objects, chosen, standing};
  queue.launch(topk_compete_kernel, dim3(blocks_for(num_points, kWarps)), kThreads, competition);
  launch_selection(queue,
                   {num_points,
                    {standing},
                    {chosen},
                    nullptr,
                    {segments},
                    filled,
                    k.const_data_ptr<int64_t>(),
                    nullptr,
                    Quota(0, num_points, num_points),
                    nullptr,
                    false,
                    nullptr,
                    nullptr,
                    nullptr,
                    1},
                   ObjectBatch(num_objects), 1);
  return owners;
}

}  // namespace mgassign::cuda

MGASSIGN_CUDA_LIBRARY(m) { m.impl("topk_per_object", TORCH_BOX(&mgassign::cuda::topk_per_object_cuda)); }
