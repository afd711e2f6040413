// Competition, then selection: each point stands for its best object, each object keeps its k best points.
//
// Three launches: a memset of the counters; competition, a warp for each point, its lanes across the objects;
// selection, a block for 32 objects of an image and a task. The block gathers the points of its objects from the
// owners of all points, each object's together, then a warp an object finds the score of its k-th best.
//
// Own code, not CUB: segments are of any number and length, known on the device alone, and only the k-th
// largest of each is wanted, not their order.
#include "steps.cuh"

namespace mgassign::cuda {

namespace {

constexpr int kWarps = 16;  // of a block
constexpr int kThreads = kWarps * kWarp;
constexpr int kObjects = kWarp;  // of a block: one a lane where their segments are laid out
constexpr int kAtOnce = 4;       // reads in flight of a thread that gathers
constexpr int kDigits = 256;
constexpr int kDigitBits = 8;

// Points in the order ranks_before() puts them, as one number: larger is better, no two are equal.
// Scores are above 0, where the order of floats is that of their bits.
__device__ uint64_t rank_key(float score, int64_t point) {
  return static_cast<uint64_t>(bits_of(score)) << 32 | (0xffffffffu - static_cast<uint32_t>(point));
}
__device__ int64_t point_of(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

__device__ int32_t sum_of_lanes_below(int32_t value, int lane) {
  int32_t sum = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const int32_t other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += other;
  }
  return sum - value;
}

// The k-th largest of n > k > 0 keys, found digit by digit from the top. A warp's work; digits is its own.
__device__ uint64_t kth_largest(const uint64_t* keys, int32_t n, int32_t k, int32_t* digits, int lane) {
  uint64_t found = 0;
  for (int shift = 64 - kDigitBits;; shift -= kDigitBits) {
    for (int i = lane; i < kDigits; i += kWarp) digits[i] = 0;
    __syncwarp();
    for (int32_t i = lane; i < n; i += kWarp) {
      const uint64_t key = keys[i];
      const bool runs = shift + kDigitBits == 64 || (key ^ found) >> (shift + kDigitBits) == 0;
      if (runs) atomicAdd(&digits[key >> shift & (kDigits - 1)], 1);
    }
    __syncwarp();

    // A lane looks at a run of digits, the first lane at the largest ones.
    constexpr int kRun = kDigits / kWarp;
    const int first = kDigits - 1 - lane * kRun;
    int32_t in_run = 0;
    for (int i = 0; i < kRun; ++i) in_run += digits[first - i];
    int32_t above = sum_of_lanes_below(in_run, lane);
    const unsigned reached = __ballot_sync(kAllLanes, above + in_run >= k);
    const int holder = __ffs(reached) - 1;
    int digit = first;
    while (lane == holder && above + digits[digit] < k) above += digits[digit--];
    int32_t same = digits[digit];
    digit = __shfl_sync(kAllLanes, digit, holder);
    above = __shfl_sync(kAllLanes, above, holder);
    same = __shfl_sync(kAllLanes, same, holder);
    __syncwarp();  // before the digits are cleared

    found |= static_cast<uint64_t>(digit) << shift;
    k -= above;
    if (same == k) return found;  // all that begin like this are kept; at the last digit it is one
  }
}

__global__ void __launch_bounds__(kThreads) topk_select_kernel(const __grid_constant__ Selection s) {
  __shared__ int32_t begin_of[kObjects], end_of[kObjects];  // of the segment; while it fills, up to where
  __shared__ int32_t digits[kWarps][kDigits];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t image = s.objects.first_image + blockIdx.y;
  const int task = blockIdx.z;
  const ObjectRows::Rows rows = s.objects.of(image);
  const int64_t first = image * s.num_points;
  const int32_t* const owner = s.standing[task].owner + first;
  const float* const score = s.standing[task].score + first;
  const int32_t* const standing = s.standing[task].count + rows.first;
  uint64_t* const segments = reinterpret_cast<uint64_t*>(s.segments[task] + first);

  for (int64_t group = blockIdx.x * kObjects; group < rows.count; group += static_cast<int64_t>(gridDim.x) * kObjects) {
    if (warp == 0) {
      const int64_t object = group + lane;
      const int32_t count = object < rows.count ? standing[object] : 0;
      const int32_t before = sum_of_lanes_below(count, lane);
      int32_t start = 0;
      if (lane == kWarp - 1) start = atomicAdd(&s.filled[task * s.num_images + image], before + count);
      begin_of[lane] = end_of[lane] = __shfl_sync(kAllLanes, start, kWarp - 1) + before;
      if (task == 0 && s.allowed && object < rows.count) {
        const int64_t row = rows.first + object;
        if (s.wanted[row] > s.allowed[row]) s.allowed[row] = s.wanted[row];
      }
    }
    __syncthreads();

    for (int64_t base = threadIdx.x; base - threadIdx.x < s.num_points; base += kAtOnce * kThreads) {
      int64_t mine[kAtOnce];
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t j = base + i * kThreads;
        mine[i] = j < s.num_points ? owner[j] - group : -1;
      }
      for (int i = 0; i < kAtOnce; ++i) {
        const bool wanted = mine[i] >= 0 && mine[i] < kObjects;
        if (__ballot_sync(kAllLanes, wanted) == 0) continue;
        // Points of one object take their places together.
        const int32_t object = wanted ? static_cast<int32_t>(mine[i]) : -1;
        const unsigned alike = __match_any_sync(kAllLanes, object);
        const int leader = __ffs(alike) - 1;
        int32_t slot = 0;
        if (wanted && lane == leader) slot = atomicAdd(&end_of[object], __popc(alike));
        slot = __shfl_sync(kAllLanes, slot, leader) + __popc(alike & ((1u << lane) - 1));
        // Offsets that decrease let images share objects, whose counts are then too high for either.
        const int64_t j = base + i * kThreads;
        if (wanted && slot < s.num_points) segments[slot] = rank_key(score[j], j);
      }
    }
    __syncthreads();

    for (int object = warp; object < kObjects && group + object < rows.count; object += kWarps) {
      const int64_t row = rows.first + group + object;
      const int64_t begin = begin_of[object];
      const int64_t end = end_of[object] < s.num_points ? end_of[object] : s.num_points;
      if (begin >= end) continue;
      const int32_t n = static_cast<int32_t>(end - begin);
      const int64_t asked = s.k ? s.k[row] : (s.wanted[row] > s.min_points ? s.wanted[row] : s.min_points);
      if (asked <= 0) continue;
      const uint64_t* const keys = segments + begin;
      const uint64_t least = asked < n ? kth_largest(keys, n, static_cast<int32_t>(asked), digits[warp], lane) : 0;
      for (int32_t i = lane; i < n; i += kWarp)
        if (keys[i] >= least) s.chosen[task][first + point_of(keys[i])] = group + object;
    }
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
    c.chosen[j] = -1;
    c.standing.owner[j] = champion.index;
    c.standing.score[j] = champion.score;
    if (champion.index >= 0) atomicAdd(&c.standing.count[champion.index], 1);
  }
}

}  // namespace

void launch_selection(const Queue& queue, Selection selection, const ObjectBatch& objects, int num_tasks) {
  if (objects.num_objects() == 0) return;
  // Blocks take several groups of objects where an image has more than these.
  constexpr unsigned kMostGroups = 64;
  const unsigned groups = std::min(kMostGroups, blocks_for(objects.largest_image(), kObjects));
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
  launch_selection(
      queue,
      {num_points, {standing}, {chosen}, {segments}, filled, k.const_data_ptr<int64_t>(), nullptr, 0, nullptr, 1, {}},
      ObjectBatch(num_objects), 1);
  return owners;
}

}  // namespace mgassign::cuda

MGASSIGN_CUDA_LIBRARY(m) { m.impl("topk_per_object", TORCH_BOX(&mgassign::cuda::topk_per_object_cuda)); }
