// Packed momenta in their rows, over the lanes of a lanes_*.h header. Included by the headers of such loops only.
#pragma once

#include "active_groups.h"

namespace dstee::cpu {
namespace {

// Reads rows in order, W at a time. Where fewer are left, from a copy with room behind it: what lies behind the last one
// belongs to other threads, or to nobody.
template <class T>
class RowReader {
 public:
  RowReader(const T* rows, int64_t count) : next_(rows), left_(count) {}
  // W of which `taken` are rows that the next call does not see again.
  DSTEE_INLINE const T* next(int taken) {
    if (left_ < W && !last_read_) read_last();
    const T* const here = next_;
    next_ += taken;
    left_ -= taken;
    return here;
  }
  DSTEE_INLINE void ahead(int bytes) const { prefetch(next_ + bytes / static_cast<int>(sizeof(T))); }

 private:
  void read_last() {
    if (left_ > 0) memcpy(last_, next_, static_cast<size_t>(left_) * sizeof(T));
    next_ = last_;
    last_read_ = true;
  }

  const T* next_;
  int64_t left_;
  bool last_read_ = false;
  T last_[2 * W] = {};
};

template <class T>
void repack(const void* rows, int64_t count, const uint8_t* before, const uint8_t* now, int64_t n, uint32_t* out) {
  RowReader<T> from(static_cast<const T*>(rows), count);
  const auto turn = [&](uint32_t was, uint32_t is) {
    compress(out, expand(load_raw(from.next(__builtin_popcount(was))), was), static_cast<Mask>(is));
    out += __builtin_popcount(is);
  };
  const int64_t whole = n / W * W, rest = n - whole;
  for (int64_t j = 0; j < whole; j += W) turn(lanes_of(before + j / 8), lanes_of(now + j / 8));
  if (rest) turn(lanes_of(TailBits(before + whole / 8, rest).b), lanes_of(TailBits(now + whole / 8, rest).b));
}

}  // namespace
}  // namespace dstee::cpu
