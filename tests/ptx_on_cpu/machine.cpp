// Runs a launch: its blocks in any order, a few at a time, their lanes as fibers that take turns at random, and watches
// for what a GPU leaves undefined. All that is found is thrown at the launch's end.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <stdexcept>

#include "engine.h"

namespace ptx_on_cpu {

Machine machine;

Fiber::Fiber(size_t number) {
  stack = static_cast<char*>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (stack == MAP_FAILED) throw std::bad_alloc();
  // Stacks of the same alignment would crowd into the same sets of a cache.
  top = kStack - number % 32 * 576;
}
Fiber::~Fiber() { munmap(stack, kStack); }

namespace {

[[gnu::noinline]] void jump(jmp_buf& from, jmp_buf& to) {
  if (_setjmp(from) == 0) _longjmp(to, 1);
}

Fiber* starting;

void run_lanes() {
  Fiber& self = *starting;
  for (;;) {
    Machine::leave(self);
    machine.kernel->run(machine.parameter, *machine.lane);
    machine.finish(*machine.lane);
  }
}

}  // namespace

void Machine::leave(Fiber& fiber) { jump(fiber.here, machine.scheduler); }

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

uint64_t Lane::meet(int at, uint32_t of_lanes, Combine how, uint64_t brought, uint32_t b, uint32_t c) {
  place = at, mask = of_lanes, combine = how, word = brought, operand_b = b, operand_c = c;
  machine.arrive(*this);
  return result;
}

void Lane::meet_block(int at) { machine.arrive_at_barrier(*this, at); }

void Lane::report(const char* what, int at) { machine.report(what, at); }

// Launches

std::unique_ptr<Block> Machine::begin_block(uint64_t number, Triple grid, unsigned threads) {
  std::unique_ptr<Block> block = finished_.empty() ? std::make_unique<Block>() : std::move(finished_.back());
  if (!finished_.empty()) finished_.pop_back();
  block->at = {{static_cast<uint32_t>(number % grid.x), static_cast<uint32_t>(number / grid.x % grid.y),
                static_cast<uint32_t>(number / grid.x / grid.y)},
               {threads, 1, 1},
               grid};
  block->serial = ++serial_;
  block->barriers = 0, block->waiting = 0;
  block->running = threads;
  block->warps.assign((threads + 31) / 32, {});
  if (threads % 32) block->warps.back().exited = kAllLanes << threads % 32;
  block->visits.assign(threads * kernel->num_basic_blocks, 0);
  block->shared.resize(kernel->shared_bytes / 8 + 3);
  for (uint64_t& word : block->shared) word = random();
  block->shadow.resize(kernel->shared_bytes / kernel->shared_unit + 1);
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

// A warp issues a basic block as often as the lane that entered it most often.
void Machine::end_block(Block& block) {
  for (size_t warp = 0; warp < block.warps.size(); ++warp)
    for (size_t i = 0; i < kernel->num_basic_blocks; ++i) {
      uint32_t most = 0;
      for (size_t lane = 32 * warp; lane < std::min(block.lanes.size(), 32 * warp + 32); ++lane)
        most = std::max(most, block.lanes[lane].visits[i]);
      entered_[i] += most;
    }
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

void Machine::launch(const std::string& name, const Kernel& launched, Triple grid, unsigned threads, const char* task) {
  kernel = &launched;
  parameter = task;
  random.state = settings.seed;
  first_serial_ = serial_ + 1;
  shadow_.clear(), shadowed_ = 0;
  if (shadow_.capacity() > 4096) shadow_.shrink_to_fit();
  entered_.assign(kernel->num_basic_blocks, 0);

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
      end_block(**done);
      finished_.push_back(std::move(*done));
      resident.erase(done);
    }
  }
  if (!fatal_.empty()) {  // the fibers of what still ran are never entered again
    ready_.clear(), idle_.clear(), fibers_.clear();
    report(fatal_);
    fatal_.clear();
  }
  Counts& total = counts[name];
  ++total.launches;
  total.warps += uint64_t{grid.x} * grid.y * grid.z * ((threads + 31) / 32);
  for (size_t i = 0; i < kernel->num_instructions; ++i) {
    const uint64_t times = entered_[kernel->basic_blocks[i]];
    total.instructions += times;
    total.by_line[kernel->places[kernel->first_place + i]] += times;
  }
  if (reports_.empty()) return;
  std::string message = "PTX of " + name + ":";
  for (const auto& [what, times] : reports_) message += "\n  " + what + " (" + std::to_string(times) + " times)";
  reports_.clear();
  throw std::runtime_error(message);
}

}  // namespace ptx_on_cpu
