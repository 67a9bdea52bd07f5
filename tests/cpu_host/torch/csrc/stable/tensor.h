// Stand-in for what csrc/ uses of torch's stable interface, so that its kernels run in a program without Python and without
// torch's threads, which sanitizers would have to believe.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

namespace torch::headeronly {

enum class ScalarType { Byte, Char, Short, Int, Long, Half, Float, Double, Bool, BFloat16 };
enum class Layout { Strided };
enum class DeviceType { CPU, CUDA };

struct IntHeaderOnlyArrayRef {
  const int64_t* data;
  size_t length;
  IntHeaderOnlyArrayRef(const int64_t* d, size_t n) : data(d), length(n) {}
  size_t size() const { return length; }
  int64_t operator[](size_t i) const { return data[i]; }
};

inline int64_t size_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Bool:
      return 1;
    case ScalarType::Short:
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Int:
    case ScalarType::Float:
      return 4;
    default:
      return 8;
  }
}

}  // namespace torch::headeronly

namespace torch::stable {

using headeronly::ScalarType;

struct Device {
  headeronly::DeviceType type() const { return headeronly::DeviceType::CPU; }
};

// Contiguous. Its memory is exactly as large as it needs, so that a sanitizer sees the first byte behind it; `offset` bytes in
// front of the data make it unaligned.
class Tensor {
 public:
  Tensor(std::vector<int64_t> sizes, ScalarType dtype, int64_t offset = 0)
      : sizes_(std::move(sizes)), strides_(sizes_.size()), dtype_(dtype), offset_(offset) {
    for (size_t d = sizes_.size(); d-- > 0; n_ *= sizes_[d]) strides_[d] = n_;
    const auto bytes = static_cast<size_t>(n_ * headeronly::size_of(dtype) + offset);
    memory_ = std::shared_ptr<void>(bytes ? std::calloc(bytes, 1) : nullptr, std::free);
  }
  headeronly::IntHeaderOnlyArrayRef sizes() const { return {sizes_.data(), sizes_.size()}; }
  headeronly::IntHeaderOnlyArrayRef strides() const { return {strides_.data(), strides_.size()}; }
  int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
  int64_t numel() const { return n_; }
  ScalarType scalar_type() const { return dtype_; }
  headeronly::Layout layout() const { return headeronly::Layout::Strided; }
  Device device() const { return {}; }
  int32_t get_device_index() const { return -1; }
  bool is_cpu() const { return true; }
  bool is_contiguous() const { return true; }
  const void* const_data_ptr() const { return n_ ? static_cast<const char*>(memory_.get()) + offset_ : nullptr; }
  void* mutable_data_ptr() const { return n_ ? static_cast<char*>(memory_.get()) + offset_ : nullptr; }

 private:
  std::vector<int64_t> sizes_, strides_;
  ScalarType dtype_;
  int64_t offset_, n_ = 1;
  std::shared_ptr<void> memory_;
};

}  // namespace torch::stable

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}
#define STD_TORCH_CHECK(condition, ...)    \
  do {                                     \
    if (!(condition)) refuse(__VA_ARGS__); \
  } while (0)
