// The GPU that translated kernels run on: lanes, their warp and block, and what an instruction may do beyond its lane.
//
// A lane is a fiber: it runs until it meets others, or is made to give way, and then any lane that can go on does.
// machine.cpp has the scheduler and the checks.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ptx_on_cpu {

enum Space { kGlobal, kShared, kLocal, kParam, kGeneric };
enum Access { kRead, kWrite, kAtomic };

struct Triple {
  uint32_t x = 1, y = 1, z = 1;
};

struct Geometry {
  Triple block, threads, grid;
};

struct Lane;
struct Block;

// What each lane gets from a meeting, from the words that all lanes brought.
using Combine = uint64_t (*)(Lane& lane, const Lane* warp);

struct Lane {
  Triple thread;
  uint32_t index;  // within its block
  const Geometry* at;
  Block* block;
  uint32_t* visits;  // of each basic block
  // A meeting.
  uint64_t word, result;
  uint32_t operand_b, operand_c, mask;
  int place;
  Combine combine;
  bool in_range;  // shfl's predicate

  // The host's address of what an instruction accesses, checked.
  template <typename Number, int kCount>
  char* reach(int place, Space space, Access access, uint64_t address) {
    return reach(place, space, access, address, kCount * sizeof(Number));
  }
  char* reach(int place, Space space, Access access, uint64_t address, unsigned bytes);

  // Waits for the lanes of a mask; null: a barrier, which orders memory. What combine() makes of all their words.
  uint64_t meet(int place, uint32_t mask, Combine combine, uint64_t word = 0, uint32_t b = 0, uint32_t c = 0);
  void meet_block(int place);

  void report(const char* what) { report(what, place); }
  void report(const char* what, int place);
  uint64_t generic_address(uint64_t shared) const;
  uint64_t shared_address(uint64_t generic) const;
};

struct Kernel {
  void (*run)(const char* parameter, Lane& lane);
  size_t parameter_bytes, shared_bytes;
  unsigned shared_unit, global_unit;  // bytes: every write there is of whole ones
  unsigned most_threads;              // of a block
  const char* const* places;          // in the source, of each instruction of the file
  const uint32_t* basic_blocks;       // of each of the kernel's instructions
  size_t first_place, num_instructions, num_basic_blocks;
};

struct Registration {
  Registration(const char* mangled_name, const Kernel& kernel);
};

// What stands where nobody has written: NaN, or a large number. As torch's CPU allocator has it.
constexpr uint64_t kJunk = 0x7fedbeef7fedbeefu;

// Registers: read and written as any type, as PTX does.

template <typename To, typename From>
To as(From from) {
  if constexpr (std::is_same_v<To, From>) {
    return from;
  } else if constexpr (sizeof(To) == sizeof(From)) {
    return std::bit_cast<To>(from);
  } else {
    To to;
    uint64_t word = 0;
    std::memcpy(&word, &from, sizeof(from));
    std::memcpy(&to, &word, sizeof(to));
    return to;
  }
}

// What a register holds at first.
template <typename Register>
Register unset() {
  if constexpr (std::is_same_v<Register, bool>)
    return true;
  else
    return as<Register>(kJunk);
}

// A narrower value is extended by its sign, if it has one.
template <typename Register, typename Value>
void set(Register& to, Value value) {
  if constexpr (std::is_integral_v<Value> && sizeof(Value) < sizeof(Register))
    to = as<Register>(static_cast<uint64_t>(std::is_signed_v<Value> ? static_cast<int64_t>(value) : value));
  else
    to = as<Register>(value);
}

template <typename Number>
Number load(const char* at, int i) {
  Number number;
  std::memcpy(&number, at + i * sizeof(Number), sizeof(Number));
  return number;
}

template <typename Number>
void save(char* at, int i, Number number) {
  std::memcpy(at + i * sizeof(Number), &number, sizeof(Number));
}

// Instructions that C++ has no operator for, or another result at the edges.

// Whatever NaN arithmetic gives on a CPU, a GPU's has one form; that of float64 is not told.
template <typename Float>
Float canonical(Float value) {
  if constexpr (std::is_same_v<Float, float>)
    if (value != value) return std::bit_cast<float>(0x7fffffffu);
  return value;
}

template <typename Number>
bool either_nan(Number a, Number b) {
  return a != a || b != b;
}

template <typename Number>
Number least(Number a, Number b) {
  if constexpr (std::is_floating_point_v<Number>) {
    if (either_nan(a, b)) return a != a ? b : a;
    if (a == b) return std::signbit(a) ? a : b;
  }
  return a < b ? a : b;
}

template <typename Number>
Number greatest(Number a, Number b) {
  if constexpr (std::is_floating_point_v<Number>) {
    if (either_nan(a, b)) return a != a ? b : a;
    if (a == b) return std::signbit(a) ? b : a;
  }
  return a < b ? b : a;
}

template <typename Number>
auto wide(Number a) {
  static_assert(sizeof(Number) <= 4);
  using Wide = std::conditional_t<sizeof(Number) == 2, int32_t, int64_t>;
  if constexpr (std::is_signed_v<Number>)
    return static_cast<Wide>(a);
  else
    return static_cast<std::make_unsigned_t<Wide>>(a);
}

template <typename Number>
Number high_product(Number a, Number b) {
  using Wide = std::conditional_t<std::is_signed_v<Number>, __int128, unsigned __int128>;
  return static_cast<Number>((static_cast<Wide>(a) * b) >> (8 * sizeof(Number)));
}

// Division by 0 gives some number on a GPU, and would end the program here.
template <typename Number>
Number quotient(Lane& lane, int place, Number a, Number b) {
  if (b) return a / b;
  lane.report("a division by 0", place);
  return static_cast<Number>(-1);
}
template <typename Number>
Number remainder(Lane& lane, int place, Number a, Number b) {
  if (b) return a % b;
  lane.report("a division by 0", place);
  return a;
}

template <typename Number>
Number shift_left(Number a, uint32_t by) {
  return by < 8 * sizeof(Number) ? static_cast<Number>(a << by) : Number{0};
}
template <typename Number>
Number shift_right(Number a, uint32_t by) {
  if (by >= 8 * sizeof(Number)) return a < 0 ? static_cast<Number>(-1) : Number{0};
  return static_cast<Number>(a >> by);
}
inline uint32_t funnel_left(uint32_t low, uint32_t high, uint32_t by) {
  return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32 | low) << (by & 31)) >> 32);
}
inline uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t by) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (by & 31));
}

template <typename Word>
Word reverse(Word a) {
  Word reversed = 0;
  for (unsigned i = 0; i < 8 * sizeof(Word); ++i) reversed = static_cast<Word>(reversed << 1 | (a >> i & 1));
  return reversed;
}

// Below 0 the highest bit that is not set.
template <typename Number>
uint32_t shift_of_highest_bit(Number a) {
  const auto bits = static_cast<std::make_unsigned_t<Number>>(a < 0 ? ~a : a);
  return bits ? std::countl_zero(bits) : ~0u;
}
template <typename Number>
uint32_t highest_bit(Number a) {
  const uint32_t shift = shift_of_highest_bit(a);
  return shift == ~0u ? shift : 8 * sizeof(Number) - 1 - shift;
}

template <typename Number>
Number bit_field(Number a, uint32_t from, uint32_t length) {
  from &= 255, length &= 255;
  const unsigned bits = 8 * sizeof(Number);
  if (length == 0) return 0;
  const Number shifted = shift_right(a, from);
  if (length >= bits) return shifted;
  return static_cast<Number>(static_cast<Number>(shifted << (bits - length)) >> (bits - length));
}

template <typename Word>
Word insert_bits(Word from, Word into, uint32_t at, uint32_t length) {
  at &= 255, length &= 255;
  const Word ones = length < 8 * sizeof(Word) ? static_cast<Word>((Word{1} << length) - 1) : static_cast<Word>(-1);
  const Word mask = shift_left(ones, at);
  return static_cast<Word>((into & ~mask) | (shift_left(from, at) & mask));
}

inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t choice) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t chosen = choice >> (4 * i);
    uint32_t byte = bytes >> (8 * (chosen & 7)) & 255;
    if (chosen & 8) byte = byte & 128 ? 255 : 0;  // its sign, over and over
    result |= byte << (8 * i);
  }
  return result;
}

// What is out of range becomes the nearest number that is not; NaN 0, or the highest bit where either type has 64.
template <typename Integer, typename Float>
Integer saturate(Float value) {
  using Limits = std::numeric_limits<Integer>;
  constexpr bool kWide = sizeof(Integer) == 8 || sizeof(Float) == 8;
  if (value != value) return kWide ? static_cast<Integer>(uint64_t{1} << (8 * sizeof(Integer) - 1)) : 0;
  if (value <= static_cast<Float>(Limits::min())) return Limits::min();
  if (value >= static_cast<Float>(Limits::max())) return Limits::max();
  return static_cast<Integer>(value);
}

inline float from_bfloat16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
inline float from_half(uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, sizeof(half));
  return static_cast<float>(half);
}

// Meetings of a warp. `warp` is its first lane; those outside the caller's mask brought nothing.

template <typename Each>
void for_each_of_mask(const Lane& lane, const Each& each) {
  for (uint32_t left = lane.mask; left; left &= left - 1) each(std::countr_zero(left));
}

inline uint64_t ballot(Lane& lane, const Lane* warp) {
  uint32_t votes = 0;
  for_each_of_mask(lane, [&](int i) { votes |= static_cast<uint32_t>(warp[i].word) << i; });
  return votes;
}
inline uint64_t vote_any(Lane& lane, const Lane* warp) { return ballot(lane, warp) != 0; }
inline uint64_t vote_all(Lane& lane, const Lane* warp) { return ballot(lane, warp) == lane.mask; }

inline uint64_t match_any(Lane& lane, const Lane* warp) {
  uint32_t alike = 0;
  for_each_of_mask(lane, [&](int i) { alike |= static_cast<uint32_t>(warp[i].word == lane.word) << i; });
  return alike;
}

template <typename Number, auto kCombine>
uint64_t reduce(Lane& lane, const Lane* warp) {
  Number result = static_cast<Number>(lane.word);
  bool own = true;  // not twice, for a sum
  for_each_of_mask(lane, [&](int i) {
    if (&warp[i] != &lane || !own)
      result = kCombine(result, static_cast<Number>(warp[i].word));
    else
      own = false;
  });
  return static_cast<uint32_t>(result);
}

enum Shuffle { kUp, kDown, kButterfly, kIndex };

template <Shuffle kMode>
uint64_t shuffle(Lane& lane, const Lane* warp) {
  const int self = static_cast<int>(lane.index % 32), b = lane.operand_b & 31;
  const int segment = lane.operand_c >> 8 & 31, clamp = lane.operand_c & 31;
  const int first = self & segment, last = first | (clamp & ~segment);
  int source = kMode == kUp          ? self - b
               : kMode == kDown      ? self + b
               : kMode == kButterfly ? self ^ b
                                     : first | (b & ~segment);
  lane.in_range = kMode == kUp ? source >= last : source <= last;
  if (!lane.in_range) source = self;
  if (!(lane.mask >> source & 1)) lane.report("a shuffle from a lane outside of the mask");
  return static_cast<uint32_t>(warp[source].word);
}

}  // namespace ptx_on_cpu
