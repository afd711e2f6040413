// What every CPU kernel uses: threads, vector code for several instruction sets, tensors of any dtype.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cfenv>

#include "../checks.h"
#include "../memory.h"
#include "floats.h"

// Compiles a loop for SSE2, AVX2 and AVX-512 and picks one when the library loads. Without contraction
// all three give the same bits. Sanitizers run before the picking is done, so they get the plain loop.
#if defined(__clang__)
#define MGASSIGN_CLONES (__clang_major__ >= 14 && !__has_feature(address_sanitizer) && !__has_feature(thread_sanitizer))
#elif defined(__GNUC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MGASSIGN_CLONES (__GNUC__ >= 12)
#else
#define MGASSIGN_CLONES 0
#endif
#if defined(__x86_64__) && defined(__linux__) && MGASSIGN_CLONES
#define MGASSIGN_VECTOR __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MGASSIGN_VECTOR
#endif

// What the functions marked so share: inlined, it is compiled for each instruction set too.
#define MGASSIGN_INLINE inline __attribute__((always_inline))
// The same of a lambda, behind its parameters: one call that is not inlined, and the loop around it is no vector code.
#define MGASSIGN_INLINE_LAMBDA __attribute__((always_inline))

namespace mgassign::cpu {

// So many numbers at a time suit vector code for every instruction set.
constexpr int64_t kLanes = 16;

// Finds those of `count` that is_hit(k): a block's answers first, by vector code, then a loop without a branch, which
// would be mispredicted too often. It is asked for up to kLanes more, whose answers do not matter. `found` has room for
// one more than there are.
template <typename IsHit>
MGASSIGN_INLINE int64_t find_hits(int64_t count, int32_t* found, const IsHit& is_hit) {
  constexpr int64_t kTogether = 64;
  int64_t num_found = 0;
  for (int64_t first = 0; first < count; first += kTogether) {
    const int64_t size = std::min(kTogether, count - first);
    uint8_t hit[kTogether], any = 0;
    for (int64_t run = 0; run < size; run += kLanes)
      for (int64_t i = run; i < run + kLanes; ++i) hit[i] = is_hit(first + i);
    for (int64_t i = 0; i < size; ++i) any |= hit[i];
    if (!any) continue;
    for (int64_t i = 0; i < size; ++i) {
      found[num_found] = static_cast<int32_t>(first + i);
      num_found += hit[i];
    }
  }
  return num_found;
}

// For as long as it lives, its thread's numbers are IEEE 754's own. Whether they are otherwise is each thread's own
// choice (torch.set_flush_denormal), and what one thread finds another one looks up.
class PlainNumbers {
 public:
  PlainNumbers() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~PlainNumbers() { std::fesetenv(&before_); }
  PlainNumbers(const PlainNumbers&) = delete;
  PlainNumbers& operator=(const PlainNumbers&) = delete;

 private:
  std::fenv_t before_;
};

// An operator with plain numbers, whose own containers may run out of memory too. Large ones are made by new_tensor()
// and new_values(), which tell how much was wanted.
template <auto kOperator>
struct Guarded;

template <typename Result, typename... Arguments, Result (*kOperator)(Arguments...)>
struct Guarded<kOperator> {
  [[noreturn]] static void refuse() {
    throw std::runtime_error("mgassign: DefaultCPUAllocator: can't allocate memory for scratch space");
  }
  static Result call(Arguments... arguments) {
    const PlainNumbers plain;
    try {
      return kOperator(std::forward<Arguments>(arguments)...);
    } catch (const std::bad_alloc&) {
      refuse();
    } catch (const std::length_error&) {  // more than a container can have
      refuse();
    }
  }
};

#define MGASSIGN_OPERATOR(name) TORCH_BOX(&mgassign::cpu::Guarded<&mgassign::cpu::name>::call)

// How many threads `work` (in point visits, roughly a nanosecond each) deserves.
inline int64_t threads_for(int64_t units, int64_t work) {
  constexpr int64_t kWorthAThread = 8192;
  const int64_t available = torch::stable::get_num_threads();
  return std::max<int64_t>(1, std::min({available, units, work / kWorthAThread}));
}

// Scratch space for each thread, made before they start: body below must not throw.
template <typename Scratch, typename... Arguments>
std::vector<Scratch> scratch_for(int64_t threads, const Arguments&... arguments) {
  std::vector<Scratch> scratch;
  scratch.reserve(threads);
  for (int64_t slot = 0; slot < threads; ++slot) scratch.emplace_back(arguments...);
  return scratch;
}

// Runs body(unit, slot) for every unit; slot < threads tells which scratch space is free to use. Units are
// handed out one by one because their cost differs; none may depend on another. body must not throw.
template <typename Body>
void for_each_unit(int64_t units, int64_t threads, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto run = [&](int64_t slot) {
    for (int64_t unit = next++; unit < units; unit = next++) body(unit, slot);
  };
  if (threads == 1) return run(0);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    const PlainNumbers plain;
    for (int64_t slot = begin; slot < end; ++slot) run(slot);
  });
}

}  // namespace mgassign::cpu
