#include "workspace.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dstee::cpu {
namespace {

constexpr size_t kAlign = size_t{1} << 21;  // whole huge pages
std::mutex mutex;                           // never waited for: a forked child may find it locked for ever
void* kept = nullptr;                       // at most one buffer, the largest returned
size_t kept_size = 0;

}  // namespace

Workspace::Workspace(size_t bytes) {
  {
    const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
    if (lock && kept_size >= bytes) {
      std::swap(data_, kept);
      std::swap(size_, kept_size);
    }
  }
  if (data_) return;
  size_ = (bytes / kAlign + 1) * kAlign;
  data_ = std::aligned_alloc(kAlign, size_);
  if (!data_) throw std::bad_alloc();
#if defined(__linux__)
  madvise(data_, size_, MADV_HUGEPAGE);
#endif
}

Workspace::~Workspace() {
  {
    const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
    if (lock && size_ > kept_size) {
      std::swap(data_, kept);
      std::swap(size_, kept_size);
    }
  }
  std::free(data_);
}

}  // namespace dstee::cpu
