// A right kernel, and the same with a fault planted: tests/test_ptx_on_cpu.py shows that each is caught.
//
// Each warp gathers its lanes' odd numbers side by side, as csrc/cuda/steps.cuh does with objects; then the block sums
// up what all its warps found and adds it to a total.
#include <queue.h>

#include <exception>
#include <string>

namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr unsigned kAll = 0xffffffffu;

enum Fault {
  kNone,
  kNoBlockBarrier,
  kNoWarpBarrier,
  kBarrierForSomeWarps,
  kExitBeforeBarrier,
  kExitBeforeVote,
  kVoteInBranch,
  kMaskWithoutCaller,
  kShuffleFromOutside,
  kPastTheEnd,
  kPastTheParameter,
  kPastTheTensor,
  kNeverWritten,
  kNeverWrittenTensor,
  kNoBarrierAmongBytes,
  kPlainAdd,
  kReadsAnotherBlock,
  kMisaligned,
  kDivisionByZero,
  kWaitsForever,
  kTooManyThreads,
  kTooManyRows,
};

struct Task {
  const unsigned* numbers;
  unsigned* total;
  unsigned* sums;  // of each block
  unsigned more[2] = {};
};

template <int kFault>
__global__ void __launch_bounds__(kThreads) sum_kernel(const __grid_constant__ Task task) {
  __shared__ unsigned gathered[kWarps][32];
  __shared__ unsigned sums[kWarps];
  __shared__ volatile uint8_t bytes[4];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned number =
      task.numbers[kFault == kPastTheTensor ? gridDim.x * kThreads : blockIdx.x * kThreads + threadIdx.x];
  const bool odd = number % 2;

  if (kFault == kExitBeforeVote && number == 7) return;
  unsigned votes;
  if (kFault == kVoteInBranch) {
    if (lane < 20)
      votes = __ballot_sync(kAll, odd);
    else
      votes = __shfl_sync(kAll, number, 0);
  } else {
    votes = __ballot_sync(kFault == kMaskWithoutCaller ? 0x0fffffffu : kAll, odd);
  }
  if (kFault == kWaitsForever && lane >= 4) __syncwarp(0xfffffff1u);
  if (odd) gathered[warp][__popc(votes & ((1u << lane) - 1)) + (kFault == kPastTheEnd ? 32 * kWarps : 0)] = number;
  if (kFault != kNoWarpBarrier) __syncwarp();
  const int count = __popc(votes) + (kFault == kNeverWritten);
  unsigned sum = 0;
  for (int i = 0; i < count; ++i) sum += gathered[warp][i];
  if (kFault == kNoBarrierAmongBytes) {  // votes order no memory
    if (threadIdx.x == 1) bytes[1] = number;
    __ballot_sync(kAll, odd);
    if (threadIdx.x == 2) bytes[2] = number;
    __ballot_sync(kAll, odd);
    if (threadIdx.x == 0) sum += bytes[1];
  }
  if (kFault == kPastTheParameter) sum += task.more[number];
  if (kFault == kDivisionByZero) sum += 5 / number;
  if (kFault == kShuffleFromOutside && lane < 16) sum = __shfl_sync(0x0000ffffu, sum, 20);
  if (lane == 0) sums[warp] = sum;

  if (kFault == kExitBeforeBarrier && warp == 3) return;
  if (kFault != kNoBlockBarrier && (kFault != kBarrierForSomeWarps || warp != 2)) __syncthreads();
  if (threadIdx.x > 0) return;
  sum = sums[0] + sums[1] + sums[2] + sums[3];
  if (kFault == kMisaligned) {
    const uint2 both = *reinterpret_cast<const uint2*>(task.numbers + 1);
    sum += both.x + both.y;
  }
  if (kFault == kPlainAdd)
    *task.total += sum;
  else
    atomicAdd(task.total, sum);
  if (kFault == kNeverWrittenTensor) sum += task.sums[blockIdx.x];
  task.sums[blockIdx.x] = sum;
  if (kFault == kReadsAnotherBlock && blockIdx.x > 0) task.sums[blockIdx.x] += task.sums[blockIdx.x - 1];
}

using Kernel = void (*)(Task);
template <int... kFaults>
Kernel kernel_of(int fault, std::integer_sequence<int, kFaults...>) {
  static const Kernel kernels[] = {sum_kernel<kFaults>...};
  return kernels[fault];
}

}  // namespace

// Runs the kernel with a fault on one block for each 128 numbers; returns what was found, "" for nothing.
extern "C" __attribute__((visibility("default"))) const char* run_fault(int fault, int blocks, const unsigned* numbers,
                                                                        unsigned* total, unsigned* sums) {
  static std::string found;
  found.clear();
  try {
    const dim3 grid(blocks, fault == kTooManyRows ? 65536 : 1);
    const int threads = fault == kTooManyThreads ? kThreads + 32 : kThreads;
    ptx_on_cpu::Queue(0).launch(kernel_of(fault, std::make_integer_sequence<int, kTooManyRows + 1>()), grid, threads,
                                Task{numbers, total, sums});
  } catch (const std::exception& error) {
    found = error.what();
  }
  return found.c_str();
}
