// Who may access what, and when. Two accesses of one unit, one of them a write, race unless they are atomic or ordered:
// by a barrier of the block or, within a warp, of all its lanes. Blocks of a launch are never ordered; launches always
// are.
#include <algorithm>

#include "engine.h"

// There where Python runs with the address sanitizer's library preloaded.
extern "C" void* __asan_region_is_poisoned(void* begin, size_t bytes) __attribute__((weak));

namespace ptx_on_cpu {

bool Machine::conflicts(const Trace& trace, const Lane& self) const {
  if (trace.block < first_serial_) return false;
  const Block& block = *self.block;
  if (trace.more_blocks || trace.block != block.serial) return true;
  if (trace.barriers < block.barriers) return false;
  const unsigned warp = self.index / 32;
  if (trace.warps & ~(1u << warp)) return true;
  return (trace.more_lanes || trace.lane != self.index) && trace.syncs == block.warps[warp].syncs;
}

void Machine::add(Trace& trace, const Lane& self, int place) const {
  const Block& block = *self.block;
  const unsigned warp = self.index / 32;
  const uint32_t syncs = block.warps[warp].syncs;
  const bool known = trace.block >= first_serial_;
  const bool same_block = known && trace.block == block.serial;
  const bool same_stretch = same_block && trace.barriers == block.barriers;
  const bool same_warp = same_stretch && trace.lane / 32 == warp && trace.syncs == syncs;
  trace.more_blocks = known && (trace.more_blocks || !same_block);
  trace.more_lanes = same_warp && (trace.more_lanes || trace.lane != self.index);
  trace.warps = (same_stretch ? trace.warps : 0) | 1u << warp;
  trace.block = block.serial, trace.barriers = block.barriers, trace.syncs = syncs;
  trace.lane = static_cast<uint16_t>(self.index), trace.place = place;
}

void Machine::trace(Cell& cell, Lane& self, int place, Access access, const char* space) {
  static const char* const names[] = {"read", "write", "atomic"};
  const auto race = [&](const Trace& other, const char* theirs) {
    report(std::string("race in ") + space + " memory of " +
               (other.block == self.block->serial ? "one block" : "two blocks") + ": " + theirs + " at " +
               where(other.place) + " and " + names[access],
           place);
  };
  if (!(access == kAtomic && cell.atomic) && conflicts(cell.writes, self))
    race(cell.writes, names[cell.atomic ? kAtomic : kWrite]);
  if (access == kRead) return add(cell.reads, self, place);
  if (conflicts(cell.reads, self)) race(cell.reads, names[kRead]);
  if (access == kWrite || !cell.atomic) cell.writes.block = 0;
  add(cell.writes, self, place);
  cell.atomic = access == kAtomic;
}

// Neighbouring units lie side by side in the table, as far as nobody else is there.
Cell& Machine::shadow_of(uintptr_t unit) {
  constexpr size_t kTogether = 64;
  if (2 * shadowed_ < shadow_.size()) {
    size_t at = (unit / kTogether * 0x9e3779b97f4a7c15u >> 20) * kTogether + unit % kTogether;
    for (size_t tried = 0; tried < shadow_.size(); tried += kTogether, at += kTogether) {
      Cell& cell = shadow_[at & (shadow_.size() - 1)];
      if (cell.unit == unit) return cell;
      if (cell.unit != 0) continue;
      cell.unit = unit;
      ++shadowed_;
      return cell;
    }
  }
  std::vector<Cell> old(std::max<size_t>(4096, 4 * shadow_.size()));
  old.swap(shadow_);
  shadowed_ = 0;
  for (const Cell& cell : old)
    if (cell.unit) shadow_of(cell.unit) = cell;
  return shadow_of(unit);
}

char* Machine::locate(Lane& self, int place, Space& space, uint64_t address, unsigned bytes) {
  Block& block = *self.block;
  char* const shared = block.shared_begin();
  char* at = reinterpret_cast<char*>(address);
  const auto within = [&](const char* begin, size_t size, unsigned width) {
    return at >= begin && at + width <= begin + size;
  };
  if (space == kGeneric)
    space = within(shared, kernel->shared_bytes, 1)                     ? kShared
            : within(block.fibers[self.index]->stack, Fiber::kStack, 1) ? kLocal
            : within(parameter, kernel->parameter_bytes, 1)             ? kParam
                                                                        : kGlobal;
  else if (space == kShared)
    at = shared + static_cast<int32_t>(address);
  const bool outside = space == kShared ? !within(shared, kernel->shared_bytes, bytes)
                       : space == kParam
                           ? !within(parameter, kernel->parameter_bytes, bytes)
                           : space == kGlobal && __asan_region_is_poisoned && __asan_region_is_poisoned(at, bytes);
  if (outside) {
    static const char* const names[] = {"global", "shared", "local", "parameter"};
    fatal_ = std::string("an access outside of ") + names[space] + " memory at " + where(place);
    wait();
  }
  return at;
}

namespace {

// Not of reads that take several numbers along, of which one may be of no interest.
bool is_junk(const char* at, unsigned bytes) {
  if (bytes > 8) return false;
  for (unsigned done = 0; done + 4 <= bytes; done += 4)
    if (load<uint32_t>(at + done, 0) == static_cast<uint32_t>(kJunk)) return true;
  return false;
}

}  // namespace

void Machine::check(Lane& self, int place, Space space, Access access, char* at, unsigned bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(at);
  if (space == kParam || space == kLocal) return;
  if (address % bytes) report("a misaligned access of " + std::to_string(bytes) + " bytes", place);
  if (space == kGlobal) {
    if (access != kWrite && is_junk(at, bytes)) report("a read of global memory that nobody wrote", place);
    for (uintptr_t unit = address / kernel->global_unit; unit <= (address + bytes - 1) / kernel->global_unit; ++unit)
      trace(shadow_of(unit), self, place, access, "global");
    return;
  }
  const size_t offset = at - self.block->shared_begin();
  for (size_t unit = offset / kernel->shared_unit; unit <= (offset + bytes - 1) / kernel->shared_unit; ++unit) {
    Cell& cell = self.block->shadow[unit];
    if (cell.unit != self.block->serial) {
      cell = {};
      cell.unit = self.block->serial;
    }
    if (access != kWrite && !cell.written) report("a read of shared memory that nobody wrote", place);
    if (access != kRead) cell.written = true;
    trace(cell, self, place, access, "shared");
  }
}

char* Lane::reach(int place, Space space, Access access, uint64_t address, unsigned bytes) {
  char* const at = machine.locate(*this, place, space, address, bytes);
  if (space != kLocal && space != kParam && machine.random.below(access == kAtomic ? 4 : 128) == 0)
    machine.give_way(*this);
  machine.check(*this, place, space, access, at, bytes);
  return at;
}

uint64_t Lane::generic_address(uint64_t shared) const {
  return reinterpret_cast<uint64_t>(block->shared_begin()) + shared;
}
uint64_t Lane::shared_address(uint64_t generic) const {
  return generic - reinterpret_cast<uint64_t>(block->shared_begin());
}

}  // namespace ptx_on_cpu
