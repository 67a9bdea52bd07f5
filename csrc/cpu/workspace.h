// Memory for the candidate lists, kept between calls: fresh pages would cost as much as the sweep itself.
#pragma once

#include <cstddef>

namespace dstee::cpu {

// A buffer of at least `bytes`, 64-byte aligned, for one call. Throws std::bad_alloc, and only here.
class Workspace {
 public:
  explicit Workspace(size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace dstee::cpu
