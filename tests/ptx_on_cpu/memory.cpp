// Who may access what, and when. Two accesses of one word, one of them a write, race unless they are atomic or ordered:
// by a barrier of the block or, within a warp, of all its lanes. Blocks of a launch are never ordered; launches always
// are.
#include <algorithm>

#include "engine.h"

// There where Python runs with the address sanitizer's library preloaded.
extern "C" void* __asan_region_is_poisoned(void* begin, size_t bytes) __attribute__((weak));

namespace ptx_on_cpu {

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

char* Lane::reach(int place, Space space, Access access, uint64_t address, unsigned bytes) {
  char* const at = machine.locate(*this, place, space, address, bytes);
  if (space != kLocal && machine.random.below(access == kAtomic ? 4 : 128) == 0) machine.give_way(*this);
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
