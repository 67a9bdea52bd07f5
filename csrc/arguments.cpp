#include "arguments.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace dstee {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kMaxDims = 16;

Dtype dtype_of(const Tensor& t, const char* what) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return kF32;
    case ScalarType::BFloat16:
      return kBF16;
    case ScalarType::Half:
      return kF16;
    default:
      STD_TORCH_CHECK(false, "dstee: ", what, " is not float32, bfloat16 or float16");
  }
  return kF32;
}

// Shape and strides without the dimensions of size 1, whose strides say nothing.
struct Layout {
  int64_t dims = 0, n = 1;
  std::array<int64_t, kMaxDims> size, stride;

  explicit Layout(const Tensor& t) {
    const auto sizes = t.sizes(), strides = t.strides();
    STD_TORCH_CHECK(static_cast<int64_t>(sizes.size()) <= kMaxDims, "dstee: more than 16 dimensions");
    for (size_t d = 0; d < sizes.size(); ++d) {
      n *= sizes[d];
      if (sizes[d] == 1) continue;
      size[dims] = sizes[d];
      stride[dims++] = strides[d];
    }
  }
  bool operator==(const Layout& o) const {
    return dims == o.dims && std::equal(size.begin(), size.begin() + dims, o.size.begin()) &&
           (n == 0 || std::equal(stride.begin(), stride.begin() + dims, o.stride.begin()));
  }
  bool is_dense() const {
    std::array<int, kMaxDims> order;
    for (int d = 0; d < dims; ++d) order[d] = d;
    std::sort(order.begin(), order.begin() + dims,
              [&](int a, int b) { return stride[a] != stride[b] ? stride[a] < stride[b] : size[a] < size[b]; });
    int64_t expected = 1;
    for (int d = 0; d < dims; ++d) {
      if (stride[order[d]] != expected) return false;
      expected *= size[order[d]];
    }
    return true;
  }
};

struct Span {
  const char *begin, *end;
  bool written;
};

// The checks, named as those in dstee/_checks.py.
class Checks {
 public:
  Checks(DeviceType device, const Tensors& params)
      : device_(device), index_(params.empty() ? 0 : params[0].get_device_index()), layers_(params.size()) {}

  void tensor_list(const Tensors& list, const char* name) const {
    STD_TORCH_CHECK(list.empty() || list.size() == layers_, "dstee: ", name, " has another length than params");
  }
  void like_param(const Tensor& t, const Layout& layout, const char* name) const {
    place(t, name);
    STD_TORCH_CHECK(Layout(t) == layout, "dstee: ", name, " has another shape or memory order than its parameter");
    check_memory(t, name);
  }
  void flat(const Tensor& t, ScalarType dtype, int64_t n, const char* name) const {
    place(t, name);
    STD_TORCH_CHECK(t.scalar_type() == dtype && t.dim() == 1 && t.numel() == n && t.is_contiguous(), "dstee: ", name,
                    " has another dtype or size than its parameter needs");
    check_memory(t, name);
  }
  // For no_overlap and signals_apart.
  void note(const void* p, int64_t bytes, bool written) {
    if (bytes) spans_.push_back({static_cast<const char*>(p), static_cast<const char*>(p) + bytes, written});
  }
  // What is ranked in place of the weight or gradient: the weight or momentum of its own layer, or nothing that is written.
  void note_signal(const void* p, Dtype dtype, const Layer& l) {
    if (l.n == 0 || ((p == l.w || p == l.m) && dtype == l.dtype)) return;
    const char* begin = static_cast<const char*>(p);
    signals_.push_back({begin, begin + l.n * element_size(dtype), false});
  }
  void no_overlap() {
    std::sort(spans_.begin(), spans_.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
    for (size_t i = 1; i < spans_.size(); ++i)
      STD_TORCH_CHECK(spans_[i - 1].end <= spans_[i].begin, "dstee: two arguments share storage");
  }
  void signals_apart() const {  // once no_overlap has sorted
    for (const Span& s : signals_) {
      auto other =
          std::upper_bound(spans_.begin(), spans_.end(), s.begin, [](const char* p, const Span& x) { return p < x.end; });
      for (; other != spans_.end() && other->begin < s.end; ++other)
        STD_TORCH_CHECK(!other->written, "dstee: drop_scores or grow_signal share storage with what is written");
    }
  }
  void scalar_tensor(const std::optional<Tensor>& t, const char* name) const {
    if (!t) return;
    const ScalarType dtype = t->scalar_type();
    STD_TORCH_CHECK(t->device().type() == device_ && t->numel() == 1, "dstee: ", name,
                    " is not one element where the kernels run");
    STD_TORCH_CHECK(
        dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
        "dstee: ", name, " is not float32, float64, bfloat16 or float16");
    check_memory(*t, name);
  }
  void rule(const std::vector<double>& sgd, const Tensors& grads, const Tensors& momenta) const {
    STD_TORCH_CHECK(sgd.size() == 7, "dstee: sgd does not have the seven numbers of a step");
    STD_TORCH_CHECK(layers_ == 0 || !grads.empty(), "dstee: the step needs grads");
    STD_TORCH_CHECK(layers_ == 0 || sgd[1] == 0 || !momenta.empty(), "dstee: momentum needs momenta");
  }
  void round(int64_t round, const std::optional<Tensor>& tensor) const {
    STD_TORCH_CHECK(
        tensor ? tensor->device().type() == device_ && tensor->numel() == 1 && tensor->scalar_type() == ScalarType::Long
               : round >= 0 && round <= kMaxRound,
        "dstee: round is not in 0..", kMaxRound, " or not one int64");
    if (tensor) check_memory(*tensor, "round");
  }
  void k(const std::vector<int64_t>& k, const std::optional<Tensor>& tensor) const {
    STD_TORCH_CHECK(tensor ? tensor->device().type() == device_ && tensor->numel() == static_cast<int64_t>(layers_) &&
                                 tensor->is_contiguous() && tensor->scalar_type() == ScalarType::Long
                           : k.size() == layers_,
                    "dstee: k does not have one int64 per layer");
    if (tensor) check_memory(*tensor, "k");
  }
  void seeds(const std::vector<int64_t>& grow_seeds) const {
    STD_TORCH_CHECK(grow_seeds.empty() || grow_seeds.size() == layers_, "dstee: grow_seeds has another length");
  }
  void bonus(const std::optional<Tensor>& bonus, int64_t round) const {
    STD_TORCH_CHECK(!bonus || (bonus->device().type() == device_ && bonus->scalar_type() == ScalarType::Float &&
                               bonus->dim() == 1 && bonus->is_contiguous() && bonus->numel() >= round + 2),
                    "dstee: bonus is not a float32 table of round + 2 entries");
    if (bonus) check_memory(*bonus, "bonus");
  }

 private:
  void place(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.device().type() == device_ && t.layout() == torch::headeronly::Layout::Strided, "dstee: ", name,
                    " is not a strided tensor where the kernels run");
    STD_TORCH_CHECK(t.get_device_index() == index_, "dstee: ", name, " is on another device than the first parameter");
  }
  DeviceType device_;
  int32_t index_;
  size_t layers_;
  std::vector<Span> spans_, signals_;
};

std::vector<Layer> read_layers(Checks& check, DeviceType device, const Tensors& params, const Tensors& grads,
                               const Tensors& momenta, const Tensors& mask_bits, const Tensors& counts,
                               const Tensors& drop_scores, const Tensors& grow_signal) {
  STD_TORCH_CHECK(mask_bits.size() == params.size(), "dstee: mask_bits has another length than params");
  check.tensor_list(grads, "grads");
  check.tensor_list(momenta, "momenta");
  check.tensor_list(counts, "counts");
  check.tensor_list(drop_scores, "drop_scores");
  check.tensor_list(grow_signal, "grow_signal");

  std::vector<Layer> layers(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    Layer& l = layers[i];
    const Layout layout(params[i]);
    l.n = layout.n;
    l.dtype = dtype_of(params[i], "params");
    const int64_t bytes = l.n * element_size(l.dtype);
    STD_TORCH_CHECK(layout.n == 0 || layout.is_dense(), "dstee: params are not dense, non-overlapping storage");
    check.like_param(params[i], layout, "params");
    l.w = params[i].mutable_data_ptr();
    check.note(l.w, bytes, true);
    if (!grads.empty()) {
      STD_TORCH_CHECK(dtype_of(grads[i], "grads") == l.dtype, "dstee: grads have another dtype than params");
      check.like_param(grads[i], layout, "grads");
      l.g = grads[i].const_data_ptr();
      check.note(l.g, bytes, false);
    }
    if (!momenta.empty()) {
      STD_TORCH_CHECK(dtype_of(momenta[i], "momenta") == l.dtype, "dstee: momenta have another dtype than params");
      check.like_param(momenta[i], layout, "momenta");
      l.m = momenta[i].mutable_data_ptr();
      check.note(l.m, bytes, true);
    }
    check.flat(mask_bits[i], ScalarType::Byte, (l.n + 7) / 8, "mask_bits");
    l.bits = static_cast<uint8_t*>(mask_bits[i].mutable_data_ptr());
    check.note(l.bits, (l.n + 7) / 8, true);
    STD_TORCH_CHECK(device != DeviceType::CPU || l.n % 8 == 0 || l.bits[l.n / 8] >> (l.n % 8) == 0,
                    "dstee: mask_bits have bits set behind the last weight");
    if (!counts.empty()) {
      check.flat(counts[i], ScalarType::Short, l.n, "counts");
      l.counts = static_cast<int16_t*>(counts[i].mutable_data_ptr());
      check.note(l.counts, 2 * l.n, true);
    }
    l.drop = l.w;
    l.drop_dtype = l.grow_dtype = l.dtype;
    l.grow = l.g;
    if (!drop_scores.empty()) {
      check.like_param(drop_scores[i], layout, "drop_scores");
      l.drop = drop_scores[i].const_data_ptr();
      l.drop_dtype = dtype_of(drop_scores[i], "drop_scores");
      check.note_signal(l.drop, l.drop_dtype, l);
    }
    if (!grow_signal.empty()) {
      check.like_param(grow_signal[i], layout, "grow_signal");
      l.grow = grow_signal[i].const_data_ptr();
      l.grow_dtype = dtype_of(grow_signal[i], "grow_signal");
      check.note_signal(l.grow, l.grow_dtype, l);
    }
    STD_TORCH_CHECK((l.drop_dtype == kF32 || l.drop_dtype == l.dtype) && (l.grow_dtype == kF32 || l.grow_dtype == l.dtype),
                    "dstee: drop_scores and grow_signal are float32 or have their parameter's dtype");
  }
  check.no_overlap();
  check.signals_apart();
  return layers;
}

}  // namespace

std::vector<Layer> read_step(DeviceType device, const StepArguments& a) {
  Checks check(device, a.params);
  auto layers = read_layers(check, device, a.params, a.grads, a.momenta, a.mask_bits, {}, {}, {});
  check.rule(a.sgd, a.grads, a.momenta);
  check.scalar_tensor(a.lr, "lr");
  check.scalar_tensor(a.grad_scale, "grad_scale");
  check.scalar_tensor(a.found_inf, "found_inf");
  return layers;
}

std::vector<Layer> read_update(DeviceType device, const UpdateArguments& a) {
  Checks check(device, a.params);
  auto layers = read_layers(check, device, a.params, a.grads, a.momenta, a.mask_bits, a.counts, a.drop_scores, a.grow_signal);
  if (layers.empty()) return layers;
  check.round(a.round, a.round_tensor);
  check.k(a.k, a.k_tensor);
  check.seeds(a.grow_seeds);
  STD_TORCH_CHECK(!a.grow_seeds.empty() || !a.grow_signal.empty() || !a.grads.empty(), "dstee: no growth signal");
  if (!a.sgd.empty()) check.rule(a.sgd, a.grads, a.momenta);
  check.bonus(a.bonus, a.round);
  STD_TORCH_CHECK(!a.bonus || !a.counts.empty(), "dstee: a bonus needs counts");
  check.scalar_tensor(a.lr, "lr");
  check.scalar_tensor(a.found_inf, "found_inf");
  return layers;
}

void refuse_missing_options(const UpdateArguments& a) {
  STD_TORCH_CHECK(a.k_grow.empty() && !a.k_grow_tensor, "dstee: this kernel has no k_grow");
  STD_TORCH_CHECK(!a.bonus_scale, "dstee: this kernel has no bonus_scale");
  STD_TORCH_CHECK(a.where.empty(), "dstee: this kernel has no where");
}

std::vector<Layer> read_masked(DeviceType device, const Tensors& params, const Tensors& mask_bits) {
  Checks check(device, params);
  return read_layers(check, device, params, {}, {}, mask_bits, {}, {}, {});
}

void check_memory(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.numel() == 0 || t.const_data_ptr(), "dstee: the storage of ", name, " has been freed");
}

double read_scalar(const Tensor& t) {
  const void* p = t.const_data_ptr();
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return read<double>(p);
    case ScalarType::Half:
      return to_float(read<f16>(p));
    case ScalarType::BFloat16:
      return to_float(read<bf16>(p));
    default:
      return read<float>(p);
  }
}

SgdRule rule_of(const std::vector<double>& sgd, bool scaled) {
  SgdRule r{};
  if (sgd.empty()) return r;
  r.lr = static_cast<float>(sgd[0]);
  r.grad_scale = 1.0f;
  r.momentum = static_cast<float>(sgd[1]);
  r.damped = static_cast<float>(1.0 - sgd[2]);
  r.weight_decay = static_cast<float>(sgd[3]);
  r.has_momentum = sgd[1] != 0;
  r.has_decay = sgd[3] != 0;
  r.scaled = scaled;
  r.nesterov = sgd[4] != 0;
  r.maximize = sgd[5] != 0;
  r.first_step = sgd[6] != 0;
  return r;
}

}  // namespace dstee
