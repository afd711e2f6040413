// Runs a launch: its blocks in any order, a few at a time, their lanes as fibers that take turns at random, and watches
// for what a GPU leaves undefined. All that is found is thrown at the launch's end.
//
// Two accesses of one word, one of them a write, race unless they are atomic or ordered: by a barrier of the block or,
// within a warp, of all its lanes. Blocks of a launch are never ordered; launches always are.
#include "machine.h"

#include <cxxabi.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <csetjmp>
#include <cstdlib>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "queue.h"

// There where Python runs with the address sanitizer's library preloaded.
extern "C" void* __asan_region_is_poisoned(void* begin, size_t bytes) __attribute__((weak));

namespace ptx_on_cpu {

namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;

struct Settings {
  uint64_t seed = 1;
  unsigned blocks_at_once = 4;
} settings;

struct Counts {
  uint64_t launches = 0, warps = 0, instructions = 0;
};
std::map<std::string, Counts> counts;  // of each kernel

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

  // Stacks of the same alignment would crowd into the same sets of a cache.
  explicit Fiber(size_t number) {
    stack = static_cast<char*>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (stack == MAP_FAILED) throw std::bad_alloc();
    top = kStack - number % 32 * 576;
  }
  Fiber(const Fiber&) = delete;
  ~Fiber() { munmap(stack, kStack); }
  void start();
  size_t top;
};

// Who accessed a word of memory, as far as that can still race.
struct Trace {
  uint32_t block = 0;  // its serial number; 0: nobody
  uint32_t barriers, syncs;
  uint32_t warps;  // since the block's last barrier
  int place;
  uint16_t lane;    // the last one
  uint8_t bytes;    // of the word
  bool more_lanes;  // of the warp, since its last barrier
  bool more_blocks;
};

struct Cell {
  Trace writes, reads;
  bool atomic;         // the writes
  uint8_t written;     // bytes
  uintptr_t word = 0;  // its address; of shared memory the block's serial number
};

struct Warp {
  uint32_t arrived = 0, exited = 0;
  uint32_t syncs = 0;
};

}  // namespace

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

namespace {

class Machine {
 public:
  void launch(const std::string& name, const Kernel& kernel, dim3 grid, unsigned threads, const char* parameter);
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
  static void leave(Fiber& fiber);

 private:
  std::string where(int place) const { return kernel->places[place]; }
  std::unique_ptr<Block> begin_block(uint64_t number, dim3 grid, unsigned threads);
  void end_block(Block& block, Counts& total);
  void enter(Lane& next);
  void release(Block& block, unsigned warp, uint32_t mask);
  void release_complete(Block& block, unsigned warp);
  void release_barrier(Block& block);
  void trace(Cell& cell, Lane& lane, int place, Access access, uint8_t bytes, const char* space);
  bool conflicts(const Trace& trace, const Lane& lane, uint8_t bytes) const;
  void add(Trace& trace, const Lane& lane, int place, uint8_t bytes) const;
  Cell& shadow_of(uintptr_t word);
  std::string everyone_waits(const Block& block) const;

  std::vector<Lane*> ready_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  std::vector<std::unique_ptr<Block>> finished_;  // to be used again
  Fiber* fiber_ = nullptr;
  std::map<std::string, int> reports_;
  std::string fatal_;
  uint32_t serial_ = 0, first_serial_ = 1;
  std::vector<Cell> shadow_;  // of global memory, a hash table of words
  size_t shadowed_ = 0;
};

Machine machine;

[[gnu::noinline]] void jump(jmp_buf& from, jmp_buf& to) {
  if (_setjmp(from) == 0) _longjmp(to, 1);
}

void Machine::leave(Fiber& fiber) { jump(fiber.here, machine.scheduler); }

Fiber* starting;

void run_lanes() {
  Fiber& self = *starting;
  for (;;) {
    Machine::leave(self);
    machine.kernel->run(machine.parameter, *machine.lane);
    machine.finish(*machine.lane);
  }
}

void Fiber::start() {
  ucontext_t context;
  getcontext(&context);
  context.uc_stack = {stack, 0, top};
  context.uc_link = nullptr;
  makecontext(&context, run_lanes, 0);
  starting = this;
  if (_setjmp(machine.scheduler) == 0) setcontext(&context);
}

void Machine::enter(Lane& next) {
  lane = &next;
  fiber_ = next.block->fibers[next.index];
  jump(scheduler, fiber_->here);
}

// Meetings

// Lets the lanes of a mask go on, all of whom have arrived or will never come.
void Machine::release(Block& block, unsigned warp, uint32_t mask) {
  Warp& state = block.warps[warp];
  Lane* const lanes = &block.lanes[warp * 32];
  const uint32_t present = mask & state.arrived;
  const Lane& first = lanes[std::countr_zero(present)];
  if (mask & state.exited) report("a collective of lanes that have exited,", first.place);
  for (uint32_t left = present; left; left &= left - 1) {
    Lane& each = lanes[std::countr_zero(left)];
    if (each.place != first.place)
      report("lanes meet at " + where(first.place) + " and at another collective,", each.place);
    each.result = each.combine ? each.combine(each, lanes) : 0;
    ready_.push_back(&each);
  }
  state.arrived &= ~present;
  if (!first.combine && mask == kAllLanes) ++state.syncs;
}

void Machine::release_complete(Block& block, unsigned warp) {
  const Warp& state = block.warps[warp];
  for (uint32_t left = state.arrived; left; left &= left - 1) {
    const uint32_t mask = block.lanes[warp * 32 + std::countr_zero(left)].mask;
    bool complete = ((state.arrived | state.exited) & mask) == mask;
    for (uint32_t others = mask & state.arrived; others; others &= others - 1)
      complete &= block.lanes[warp * 32 + std::countr_zero(others)].mask == mask;
    if (complete) release(block, warp, mask);
    left &= state.arrived | (left & -left);
  }
}

void Machine::arrive(Lane& self) {
  Block& block = *self.block;
  Warp& state = block.warps[self.index / 32];
  const uint32_t bit = 1u << self.index % 32;
  if (!(self.mask & bit)) report("a lane outside of its own mask", self.place);
  self.mask |= bit;
  state.arrived |= bit;
  if (((state.arrived | state.exited) & self.mask) == self.mask) release_complete(block, self.index / 32);
  wait();
}

void Machine::release_barrier(Block& block) {
  if (!block.waiting || block.waiting != block.running) return;
  if (block.running != block.lanes.size())
    report("a barrier of a block whose threads have not all come", block.waiting_at);
  block.waiting = 0;
  ++block.barriers;
  for (Lane& each : block.lanes)
    if (each.place == block.waiting_at && each.mask == 0) {
      each.mask = kAllLanes;
      ready_.push_back(&each);
    }
}

void Machine::arrive_at_barrier(Lane& self, int place) {
  Block& block = *self.block;
  if (block.waiting && block.waiting_at != place) {
    report("threads meet at " + where(block.waiting_at) + " and at another barrier,", place);
    place = block.waiting_at;
  }
  self.place = block.waiting_at = place;
  self.mask = 0;  // waits for the block
  ++block.waiting;
  release_barrier(block);
  wait();
}

void Machine::finish(Lane& self) {
  Block& block = *self.block;
  self.mask = kAllLanes;
  --block.running;
  block.warps[self.index / 32].exited |= 1u << self.index % 32;
  release_complete(block, self.index / 32);
  release_barrier(block);
}

// Memory

bool Machine::conflicts(const Trace& trace, const Lane& self, uint8_t bytes) const {
  if (trace.block < first_serial_ || !(trace.bytes & bytes)) return false;
  const Block& block = *self.block;
  if (trace.more_blocks || trace.block != block.serial) return true;
  if (trace.barriers < block.barriers) return false;
  const unsigned warp = self.index / 32;
  if (trace.warps & ~(1u << warp)) return true;
  return (trace.more_lanes || trace.lane != self.index) && trace.syncs == block.warps[warp].syncs;
}

void Machine::add(Trace& trace, const Lane& self, int place, uint8_t bytes) const {
  const Block& block = *self.block;
  const unsigned warp = self.index / 32;
  const uint32_t syncs = block.warps[warp].syncs;
  const bool known = trace.block >= first_serial_ && trace.bytes & bytes;
  const bool same_block = known && trace.block == block.serial;
  const bool same_stretch = same_block && trace.barriers == block.barriers;
  const bool same_warp = same_stretch && trace.lane / 32 == warp && trace.syncs == syncs;
  trace.more_blocks = known && (trace.more_blocks || !same_block);
  trace.more_lanes = same_warp && (trace.more_lanes || trace.lane != self.index);
  trace.warps = (same_stretch ? trace.warps : 0) | 1u << warp;
  trace.bytes = known ? trace.bytes | bytes : bytes;
  trace.block = block.serial, trace.barriers = block.barriers, trace.syncs = syncs;
  trace.lane = static_cast<uint16_t>(self.index), trace.place = place;
}

void Machine::trace(Cell& cell, Lane& self, int place, Access access, uint8_t bytes, const char* space) {
  static const char* const names[] = {"read", "write", "atomic"};
  const auto race = [&](const Trace& other, const char* theirs) {
    report(std::string("race in ") + space + " memory of " +
               (other.block == self.block->serial ? "one block" : "two blocks") + ": " + theirs + " at " +
               where(other.place) + " and " + names[access],
           place);
  };
  if (!(access == kAtomic && cell.atomic) && conflicts(cell.writes, self, bytes))
    race(cell.writes, names[cell.atomic ? kAtomic : kWrite]);
  if (access == kRead) return add(cell.reads, self, place, bytes);
  if (conflicts(cell.reads, self, bytes)) race(cell.reads, names[kRead]);
  if (access == kWrite || !cell.atomic) cell.writes.block = 0;
  add(cell.writes, self, place, bytes);
  cell.atomic = access == kAtomic;
}

// Neighbouring words lie side by side in the table, as far as nobody else is there.
Cell& Machine::shadow_of(uintptr_t word) {
  constexpr size_t kTogether = 64;
  if (2 * shadowed_ < shadow_.size()) {
    size_t at = (word / kTogether * 0x9e3779b97f4a7c15u >> 20) * kTogether + word % kTogether;
    for (size_t tried = 0; tried < shadow_.size(); tried += kTogether, at += kTogether) {
      Cell& cell = shadow_[at & (shadow_.size() - 1)];
      if (cell.word == word) return cell;
      if (cell.word != 0) continue;
      cell.word = word;
      ++shadowed_;
      return cell;
    }
  }
  std::vector<Cell> old(std::max<size_t>(4096, 4 * shadow_.size()));
  old.swap(shadow_);
  shadowed_ = 0;
  for (const Cell& cell : old)
    if (cell.word) shadow_of(cell.word) = cell;
  return shadow_of(word);
}

char* Machine::locate(Lane& self, int place, Space& space, uint64_t address, unsigned bytes) {
  Block& block = *self.block;
  char* const shared = block.shared_begin();
  char* at = reinterpret_cast<char*>(address);
  if (space == kGeneric) {
    const char* const stack = block.fibers[self.index]->stack;
    space = at >= shared && at < shared + kernel->shared_bytes ? kShared
            : at >= stack && at < stack + Fiber::kStack        ? kLocal
                                                               : kGlobal;
  } else if (space == kShared) {
    at = shared + static_cast<int32_t>(address);
  }
  const bool outside = space == kShared
                           ? at < shared || at + bytes > shared + kernel->shared_bytes
                           : __asan_region_is_poisoned && space == kGlobal && __asan_region_is_poisoned(at, bytes);
  if (outside) {
    fatal_ =
        std::string("an access outside of ") + (space == kShared ? "shared" : "global") + " memory at " + where(place);
    wait();
  }
  return at;
}

void Machine::check(Lane& self, int place, Space space, Access access, char* at, unsigned bytes) {
  if (reinterpret_cast<uintptr_t>(at) % bytes)
    report("a misaligned access of " + std::to_string(bytes) + " bytes", place);
  if (space == kLocal) return;
  const char* const shared = self.block->shared_begin();
  for (unsigned done = 0; done < bytes; done += 4) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(at) + done;
    const uint8_t touched = bytes >= 4 ? 15 : static_cast<uint8_t>(((1u << bytes) - 1) << address % 4);
    if (space == kShared) {
      Cell& cell = self.block->shadow[(at + done - shared) / 4];
      if (cell.word != self.block->serial) {
        cell = {};
        cell.word = self.block->serial;
      }
      if (access != kWrite && (cell.written & touched) != touched)
        report("a read of shared memory that nobody wrote", place);
      if (access != kRead) cell.written |= touched;
      trace(cell, self, place, access, touched, "shared");
    } else {
      trace(shadow_of(address / 4), self, place, access, touched, "global");
    }
  }
}

// Launches

std::unique_ptr<Block> Machine::begin_block(uint64_t number, dim3 grid, unsigned threads) {
  std::unique_ptr<Block> block = finished_.empty() ? std::make_unique<Block>() : std::move(finished_.back());
  if (!finished_.empty()) finished_.pop_back();
  block->at = {{static_cast<uint32_t>(number % grid.x), static_cast<uint32_t>(number / grid.x % grid.y),
                static_cast<uint32_t>(number / grid.x / grid.y)},
               {threads, 1, 1},
               {grid.x, grid.y, grid.z}};
  block->serial = ++serial_;
  block->barriers = 0, block->waiting = 0;
  block->running = threads;
  block->warps.assign((threads + 31) / 32, {});
  if (threads % 32) block->warps.back().exited = kAllLanes << threads % 32;
  block->visits.assign(threads * kernel->num_basic_blocks, 0);
  block->shared.resize(kernel->shared_bytes / 8 + 3);
  for (uint64_t& word : block->shared) word = random();
  block->shadow.resize(kernel->shared_bytes / 4 + 1);
  block->lanes.assign(threads, {});
  block->fibers.clear();
  for (unsigned i = 0; i < threads; ++i) {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>(fibers_.size()));
      idle_.push_back(fibers_.back().get());
      idle_.back()->start();
    }
    block->fibers.push_back(idle_.back());
    idle_.pop_back();
    Lane& each = block->lanes[i];
    each.thread = {i, 0, 0};
    each.index = i;
    each.at = &block->at;
    each.block = block.get();
    each.visits = &block->visits[i * kernel->num_basic_blocks];
    each.mask = kAllLanes;
    ready_.push_back(&each);
  }
  return block;
}

// Counts as a warp issues instructions: each basic block as often as the lane that entered it most often.
void Machine::end_block(Block& block, Counts& total) {
  for (size_t warp = 0; warp < block.warps.size(); ++warp)
    for (size_t i = 0; i < kernel->num_basic_blocks; ++i) {
      uint32_t most = 0;
      for (size_t lane = 32 * warp; lane < std::min(block.lanes.size(), 32 * warp + 32); ++lane)
        most = std::max(most, block.lanes[lane].visits[i]);
      total.instructions += static_cast<uint64_t>(most) * kernel->sizes[i];
    }
  total.warps += block.warps.size();
  idle_.insert(idle_.end(), block.fibers.begin(), block.fibers.end());
}

std::string Machine::everyone_waits(const Block& block) const {
  std::map<std::string, int> waiting;
  for (const Lane& each : block.lanes)
    if (!(block.warps[each.index / 32].exited >> each.index % 32 & 1)) ++waiting[where(each.place)];
  std::string text = "deadlock:";
  for (const auto& [place, lanes] : waiting) text += " " + std::to_string(lanes) + " threads wait at " + place;
  return text;
}

void Machine::launch(const std::string& name, const Kernel& launched, dim3 grid, unsigned threads, const char* task) {
  kernel = &launched;
  parameter = task;
  random.state = settings.seed;
  first_serial_ = serial_ + 1;
  shadow_.clear(), shadowed_ = 0;
  if (shadow_.capacity() > 4096) shadow_.shrink_to_fit();
  Counts& total = counts[name];
  ++total.launches;

  std::vector<uint64_t> order(uint64_t{grid.x} * grid.y * grid.z);
  for (size_t i = 0; i < order.size(); ++i) {
    order[i] = i;
    std::swap(order[i], order[random.below(i + 1)]);
  }
  std::vector<std::unique_ptr<Block>> resident;
  while (fatal_.empty()) {
    while (resident.size() < settings.blocks_at_once && !order.empty()) {
      resident.push_back(begin_block(order.back(), grid, threads));
      order.pop_back();
    }
    if (resident.empty()) break;
    if (ready_.empty()) {
      fatal_ = everyone_waits(*resident.front());
      break;
    }
    // Mostly one of those that met last, which are still in the cache; at times anybody.
    const size_t recent = random.below(8) ? std::min<size_t>(32, ready_.size()) : ready_.size();
    Lane*& chosen = ready_[ready_.size() - 1 - random.below(recent)];
    Lane& next = *chosen;
    chosen = ready_.back();
    ready_.pop_back();
    enter(next);
    if (next.block->running == 0) {
      const auto done = std::find_if(resident.begin(), resident.end(), [&](auto& b) { return b.get() == next.block; });
      end_block(**done, total);
      finished_.push_back(std::move(*done));
      resident.erase(done);
    }
  }
  if (!fatal_.empty()) {  // the fibers of what still ran are never entered again
    ready_.clear(), idle_.clear(), fibers_.clear();
    report(fatal_);
    fatal_.clear();
  }
  if (reports_.empty()) return;
  std::string message = "PTX of " + name + ":";
  for (const auto& [what, times] : reports_) message += "\n  " + what + " (" + std::to_string(times) + " times)";
  reports_.clear();
  throw std::runtime_error(message);
}

// What nvcc's host code tells the CUDA runtime: which function of the host stands for which kernel.
std::unordered_map<const void*, std::string>& names() {
  static std::unordered_map<const void*, std::string> names;
  return names;
}
std::unordered_map<std::string, Kernel>& kernels() {
  static std::unordered_map<std::string, Kernel> kernels;
  return kernels;
}

// assign::cuda::(anonymous namespace)::select_kernel(Selection) -> select_kernel
std::string plain_name(const std::string& mangled) {
  int status = 0;
  char* const demangled = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string name = demangled ? demangled : mangled;
  std::free(demangled);
  const size_t at = name.find("_kernel");
  if (at == std::string::npos) return name;
  const size_t begin = name.rfind("::", at);
  const size_t end = name[at + 7] == '<' ? name.rfind('>', name.rfind('(')) + 1 : at + 7;
  return name.substr(begin == std::string::npos ? 0 : begin + 2, end - (begin == std::string::npos ? 0 : begin + 2));
}

}  // namespace

Registration::Registration(const char* mangled_name, const Kernel& kernel) { kernels()[mangled_name] = kernel; }

void launch(const void* function, dim3 blocks, unsigned threads, const void* task, size_t task_bytes) {
  const auto name = names().find(function);
  const auto found = name == names().end() ? kernels().end() : kernels().find(name->second);
  if (found == kernels().end()) throw std::runtime_error("PTX: a launch of an unknown kernel");
  const std::string plain = plain_name(found->first);
  const auto expect = [&](bool condition, const std::string& what) {
    if (!condition) throw std::runtime_error("PTX of " + plain + ": " + what);
  };
  expect(task_bytes == found->second.parameter_bytes, "host and device disagree about the parameter's size");
  expect(threads > 0 && threads <= found->second.most_threads,
         "more threads in a block than it was compiled for, or none");
  expect(blocks.x > 0 && blocks.y > 0 && blocks.z > 0 && blocks.x < 1u << 31 && blocks.y < 65536 && blocks.z < 65536,
         "a grid that no GPU takes");
  machine.launch(plain, found->second, blocks, threads, static_cast<const char*>(task));
}

char* Lane::reach(int place, Space space, Access access, uint64_t address, unsigned bytes) {
  char* const at = machine.locate(*this, place, space, address, bytes);
  if (space != kLocal && machine.random.below(access == kAtomic ? 4 : 128) == 0) machine.give_way(*this);
  machine.check(*this, place, space, access, at, bytes);
  return at;
}

uint64_t Lane::meet(int at, uint32_t of_lanes, Combine how, uint64_t brought, uint32_t b, uint32_t c) {
  place = at, mask = of_lanes, combine = how, word = brought, operand_b = b, operand_c = c;
  machine.arrive(*this);
  return result;
}

void Lane::meet_block(int at) { machine.arrive_at_barrier(*this, at); }

void Lane::report(const char* what) { machine.report(what, place); }

uint64_t Lane::generic_address(uint64_t shared) const {
  return reinterpret_cast<uint64_t>(block->shared_begin()) + shared;
}
uint64_t Lane::shared_address(uint64_t generic) const {
  return generic - reinterpret_cast<uint64_t>(block->shared_begin());
}

}  // namespace ptx_on_cpu

extern "C" {

[[gnu::visibility("default")]] void ptx_on_cpu_schedule(uint64_t seed, unsigned blocks_at_once) {
  ptx_on_cpu::settings = {seed, blocks_at_once};
}

// A line for each kernel since the last call: name, launches, warps, instructions.
[[gnu::visibility("default")]] const char* ptx_on_cpu_counts() {
  static std::string text;
  text.clear();
  for (const auto& [name, c] : ptx_on_cpu::counts)
    text += name + "\t" + std::to_string(c.launches) + "\t" + std::to_string(c.warps) + "\t" +
            std::to_string(c.instructions) + "\n";
  ptx_on_cpu::counts.clear();
  return text.c_str();
}

// The CUDA runtime, as far as nvcc's host code needs one.
void __cudaRegisterFunction(void**, const char* host, char*, const char* device, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  ptx_on_cpu::names()[host] = device;
}
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorNotSupported; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaErrorNotSupported; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) { return cudaErrorNotSupported; }
}
