#include "races.h"

namespace ptx {

void SharedRaces::reset(size_t shared_bytes, bool bytes) {
  const size_t words = (shared_bytes + 3) / 4;
  if (words_.size() < words) words_.resize(words);
  if (bytes && bytes_.size() < 4 * words) bytes_.resize(4 * words);
}

bool SharedRaces::concurrent(Time time, uint32_t warp, uint32_t lanes, const SharedAccess& a, const Ordering& o) {
  if (time < o.barrier) return false;
  if (warp != a.thread / kLanes) return true;
  lanes &= ~(1u << a.thread % kLanes);
  if (time < o.warp) return false;
  if (time < o.partial) lanes &= ~o.partial_lanes;
  return lanes != 0;
}

Race SharedRaces::check(const Record& r, const SharedAccess& a, const Ordering& o) {
  Race race;
  const bool after_write = concurrent(r.write_time, r.write_thread / kLanes, 1u << r.write_thread % kLanes, a, o);
  if (after_write && !(a.strong && r.write_strong)) {
    race.kind = a.writes ? Race::Kind::kWriteWrite : Race::Kind::kReadAfterWrite;
    race.thread = r.write_thread;
    race.at = r.write_at;
    return race;
  }
  if (!a.writes) return race;
  for (const Reads& reads : r.reads) {
    if (!concurrent(reads.time, reads.warp, reads.lanes, a, o) || (a.strong && reads.strong)) continue;
    race.kind = Race::Kind::kWriteAfterRead;
    const uint32_t others = reads.warp == a.thread / kLanes ? reads.lanes & ~(1u << a.thread % kLanes) : reads.lanes;
    race.thread = reads.warp * kLanes + static_cast<uint32_t>(__builtin_ctz(others));
    race.at = reads.at;
    return race;
  }
  return race;
}

void SharedRaces::update(Record& r, const SharedAccess& a, const Ordering& o) {
  if (a.writes) {
    r.write_time = a.now;
    r.write_thread = a.thread;
    r.write_at = a.at;
    r.write_strong = a.strong;
    return;
  }
  const uint32_t warp = a.thread / kLanes, lane = 1u << a.thread % kLanes;
  Reads& latest = r.reads[0];
  const Time since = o.warp > o.barrier ? o.warp : o.barrier;
  if (latest.warp == warp && latest.time >= since) {
    latest.lanes |= lane;
    latest.strong = latest.strong && a.strong;
  } else {
    if (latest.warp != warp) r.reads[1] = latest;
    latest.lanes = lane;
    latest.warp = warp;
    latest.strong = a.strong;
  }
  latest.time = a.now;
  latest.at = a.at;
}

Race SharedRaces::note(const SharedAccess& a, const Ordering& o) {
  const auto found = [&](Race race, uint32_t byte) {
    race.byte = byte;
    return race;
  };
  const uint32_t end = a.first + a.bytes;
  for (uint32_t w = a.first / 4; w <= (end - 1) / 4; ++w) {
    Record& word = words_[w];
    const uint32_t from = w * 4 < a.first ? a.first : w * 4, to = w * 4 + 4 > end ? end : w * 4 + 4;
    const bool whole = to - from == 4;
    Race race = check(word, a, o);
    if (race.kind != Race::Kind::kNone) return found(race, from);
    const bool look = !whole || word.part_time >= o.block_start;
    for (uint32_t b = from; look && b < to; ++b) {
      race = check(bytes_[b], a, o);
      if (race.kind != Race::Kind::kNone) return found(race, b);
      if (a.reads && word.write_time < o.block_start && bytes_[b].write_time < o.block_start)
        return found({Race::Kind::kUninitialised, 0, 0, 0}, b);
    }
    if (!look && a.reads && word.write_time < o.block_start) return found({Race::Kind::kUninitialised, 0, 0, 0}, from);
    if (whole) {
      update(word, a, o);
      continue;
    }
    for (uint32_t b = from; b < to; ++b) update(bytes_[b], a, o);
    word.part_time = a.now;
  }
  return {};
}

}  // namespace ptx
