// What machine.cpp (who runs when) and memory.cpp (who may access what) know of a launch.
#pragma once

#include <csetjmp>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "machine.h"

namespace ptx_on_cpu {

constexpr uint32_t kAllLanes = 0xffffffffu;

// Who runs when.
struct Settings {
  uint64_t seed = 1;
  unsigned blocks_at_once = 4;
};

// What a kernel did.
struct Counts {
  uint64_t launches = 0, warps = 0, instructions = 0;
  std::map<std::string, uint64_t> by_line;
};

// splitmix64
struct Random {
  uint64_t state;
  uint64_t operator()() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  uint64_t below(uint64_t n) { return ((*this)() >> 32) * n >> 32; }  // n < 2^32
};

// A stack on which one lane after the other runs. Left and entered without asking the operating system.
struct Fiber {
  static constexpr size_t kStack = 64 << 10;
  jmp_buf here;
  char* stack;
  size_t top;  // of what is used

  explicit Fiber(size_t number);
  Fiber(const Fiber&) = delete;
  ~Fiber();
  void start();
};

// Who accessed a unit of memory, as far as that can still race.
struct Trace {
  uint32_t block = 0;  // its serial number; 0: nobody
  uint32_t barriers, syncs;
  uint32_t warps;  // since the block's last barrier
  int place;
  uint16_t lane;    // the last one
  bool more_lanes;  // of the warp, since its last barrier
  bool more_blocks;
};

struct Cell {
  Trace writes, reads;
  bool atomic;         // the writes
  bool written;        // of shared memory
  uintptr_t unit = 0;  // its address; of shared memory the block's serial number
};

struct Warp {
  uint32_t arrived = 0, exited = 0;
  uint32_t syncs = 0;
};

struct Block {
  Geometry at;
  uint32_t serial;
  uint32_t barriers = 0;
  unsigned running, waiting = 0;
  int waiting_at = 0;
  std::vector<Lane> lanes;
  std::vector<Warp> warps;
  std::vector<Fiber*> fibers;
  std::vector<uint32_t> visits;
  std::vector<uint64_t> shared;
  std::vector<Cell> shadow;  // of shared

  char* shared_begin() { return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared.data()) + 15) & ~15ull); }
};

class Machine {
 public:
  void launch(const std::string& name, const Kernel& kernel, Triple grid, unsigned threads, const char* parameter);
  void finish(Lane& lane);
  void wait() { leave(*fiber_); }
  void give_way(Lane& lane) {
    ready_.push_back(&lane);
    wait();
  }
  void check(Lane& lane, int place, Space space, Access access, char* at, unsigned bytes);
  char* locate(Lane& lane, int place, Space& space, uint64_t address, unsigned bytes);
  void arrive(Lane& lane);
  void arrive_at_barrier(Lane& lane, int place);
  void report(const std::string& what) { ++reports_[what]; }
  void report(const std::string& what, int place) { report(what + " at " + where(place)); }
  Random random{};

  // Of the lane that runs.
  Lane* lane;
  const Kernel* kernel;
  const char* parameter;
  jmp_buf scheduler;
  std::map<std::string, Counts> counts;  // of each kernel
  Settings settings;
  static void leave(Fiber& fiber);

 private:
  std::string where(int place) const { return kernel->places[place]; }
  std::unique_ptr<Block> begin_block(uint64_t number, Triple grid, unsigned threads);
  void end_block(Block& block);
  void enter(Lane& next);
  void release(Block& block, unsigned warp, uint32_t mask);
  void release_complete(Block& block, unsigned warp);
  void release_barrier(Block& block);
  void trace(Cell& cell, Lane& lane, int place, Access access, const char* space);
  bool conflicts(const Trace& trace, const Lane& lane) const;
  void add(Trace& trace, const Lane& lane, int place) const;
  Cell& shadow_of(uintptr_t unit);
  std::string everyone_waits(const Block& block) const;

  std::vector<Lane*> ready_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  std::vector<std::unique_ptr<Block>> finished_;  // to be used again
  Fiber* fiber_ = nullptr;
  std::map<std::string, int> reports_;
  std::string fatal_;
  uint32_t serial_ = 0, first_serial_ = 1;
  std::vector<Cell> shadow_;  // of global memory, a hash table of units
  size_t shadowed_ = 0;
  std::vector<uint64_t> entered_;  // each basic block, by all warps
};

extern Machine machine;

}  // namespace ptx_on_cpu
