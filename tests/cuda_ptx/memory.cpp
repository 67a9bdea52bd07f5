#include "memory.h"

#include <cstring>

namespace ptx {
namespace {

char* memory_of(uintptr_t sector) { return reinterpret_cast<char*>(sector * kSector); }

void copy_masked(char* to, const char* from, uint32_t mask) {
  for (; mask != 0; mask &= mask - 1) to[__builtin_ctz(mask)] = from[__builtin_ctz(mask)];
}

}  // namespace

void Processor::start() {
  lines_.resize(kLines);
  heads_.assign(kHeads, -1);
  waiting_.clear();
  waiting_.reserve(kMostWaiting + 1);
  forget();
}

int Processor::find(uintptr_t sector, uint32_t block) const {
  int i = heads_[hash(sector) % kHeads];
  while (i >= 0 && (waiting_[i].sector != sector || waiting_[i].block != block)) i = waiting_[i].next;
  return i;
}

void Processor::load(uint32_t block, uintptr_t address, unsigned bytes, void* out) {
  const uintptr_t sector = address / kSector, at = address % kSector;
  Line& line = lines_[hash(sector) % kLines];
  if (line.sector != sector || line.epoch != epoch_) {
    line.sector = sector;
    line.epoch = epoch_;
    memcpy(line.bytes, memory_of(sector), kSector);
  }
  memcpy(out, line.bytes + at, bytes);
  const int own = find(sector, block);
  if (own < 0) return;
  const auto wanted = static_cast<uint32_t>((uint64_t{1} << bytes) - 1);
  copy_masked(static_cast<char*>(out), waiting_[own].bytes + at, waiting_[own].mask >> at & wanted);
}

void Processor::store(uint32_t block, uintptr_t address, unsigned bytes, const void* value, cuda_host::Random& random) {
  const uintptr_t sector = address / kSector, at = address % kSector;
  Line& line = lines_[hash(sector) % kLines];
  if (line.sector == sector && line.epoch == epoch_) memcpy(line.bytes + at, value, bytes);
  int own = find(sector, block);
  if (own < 0) {
    if (waiting_.size() == kMostWaiting) complete(random.below(kMostWaiting));
    int& head = heads_[hash(sector) % kHeads];
    own = static_cast<int>(waiting_.size());
    waiting_.push_back({sector, block, 0, head, {}});
    head = own;
  }
  memcpy(waiting_[own].bytes + at, value, bytes);
  waiting_[own].mask |= static_cast<uint32_t>(((uint64_t{1} << bytes) - 1) << at);
  if (random.below(16) == 0) complete(random.below(static_cast<uint32_t>(waiting_.size())));
}

void Processor::complete(size_t i) {
  const auto unlink = [this](size_t which, int by) {
    int* place = &heads_[hash(waiting_[which].sector) % kHeads];
    while (*place != static_cast<int>(which)) place = &waiting_[*place].next;
    *place = by;
  };
  const Waiting& done = waiting_[i];
  copy_masked(memory_of(done.sector), done.bytes, done.mask);
  Line& line = lines_[hash(done.sector) % kLines];  // filled before the store, it would hide it from the own block
  if (line.sector == done.sector && line.epoch == epoch_) copy_masked(line.bytes, done.bytes, done.mask);
  unlink(i, waiting_[i].next);
  const size_t last = waiting_.size() - 1;
  if (i != last) {
    unlink(last, static_cast<int>(i));
    waiting_[i] = waiting_[last];
  }
  waiting_.pop_back();
}

void Processor::bypass(uint32_t block, uintptr_t address) {
  const uintptr_t sector = address / kSector;
  const int own = find(sector, block);
  if (own >= 0) complete(static_cast<size_t>(own));
  Line& line = lines_[hash(sector) % kLines];
  if (line.sector == sector) line.epoch = 0;
}

void Processor::publish(uint32_t block) {
  for (size_t i = waiting_.size(); i-- > 0;)
    if (waiting_[i].block == block) complete(i);
  forget();
}

void Processor::publish_all() {
  while (!waiting_.empty()) complete(waiting_.size() - 1);
}

}  // namespace ptx
