#include "arguments.h"

#include "checks.h"

namespace dstee {
namespace {

std::vector<Layer> read_layers(Checks& check, DeviceType device, const Tensors& params, const Tensors& grads,
                               const Tensors& momenta, const Tensors& mask_bits, const Tensors& counts,
                               const Tensors& drop_scores, const Tensors& grow_signal, bool packed_momenta = false) {
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
      const int64_t entries = packed_momenta ? momenta[i].numel() : l.n;
      if (packed_momenta)
        check.flat(momenta[i], params[i].scalar_type(), entries, "momenta");
      else
        check.like_param(momenta[i], layout, "momenta");
      l.m = momenta[i].mutable_data_ptr();
      check.note(l.m, entries * element_size(l.dtype), true);
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
      check.note_signal(l.drop, l.drop_dtype, l, packed_momenta);
    }
    if (!grow_signal.empty()) {
      check.like_param(grow_signal[i], layout, "grow_signal");
      l.grow = grow_signal[i].const_data_ptr();
      l.grow_dtype = dtype_of(grow_signal[i], "grow_signal");
      check.note_signal(l.grow, l.grow_dtype, l, packed_momenta);
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
  STD_TORCH_CHECK(!a.packed_momenta || device == DeviceType::CPU, "dstee: this kernel of masked_sgd_ has no packed_momenta");
  Checks check(device, a.params);
  auto layers = read_layers(check, device, a.params, a.grads, a.momenta, a.mask_bits, {}, {}, {}, a.packed_momenta);
  check.rule(a.sgd, a.grads, a.momenta);
  check.scalar_tensor(a.lr, "lr");
  check.scalar_tensor(a.grad_scale, "grad_scale");
  check.scalar_tensor(a.found_inf, "found_inf");
  return layers;
}

std::vector<Layer> read_update(DeviceType device, const UpdateArguments& a) {
  STD_TORCH_CHECK(!a.packed_momenta || device == DeviceType::CPU, "dstee: this kernel of drop_grow_ has no packed_momenta");
  Checks check(device, a.params);
  auto layers = read_layers(check, device, a.params, a.grads, a.momenta, a.mask_bits, a.counts, a.drop_scores, a.grow_signal,
                            a.packed_momenta);
  if (layers.empty()) return layers;
  STD_TORCH_CHECK(!a.packed_momenta || a.momenta.empty() || (a.k_grow.empty() && !a.k_grow_tensor),
                  "dstee: k_grow changes how many packed momenta there are");
  check.round(a.round, a.round_tensor);
  check.numbers(a.k, a.k_tensor, "k");
  if (a.k_grow_tensor || !a.k_grow.empty()) check.numbers(a.k_grow, a.k_grow_tensor, "k_grow");
  check.seeds(a.grow_seeds, 1);
  check.where(a.where);
  STD_TORCH_CHECK(!a.grow_seeds.empty() || !a.grow_signal.empty() || !a.grads.empty(), "dstee: no growth signal");
  if (!a.sgd.empty()) check.rule(a.sgd, a.grads, a.momenta);
  check.bonus(a.bonus, a.bonus_scale, a.round);
  STD_TORCH_CHECK(!a.bonus || !a.counts.empty(), "dstee: a bonus needs counts");
  check.scalar_tensor(a.lr, "lr");
  check.scalar_tensor(a.found_inf, "found_inf");
  return layers;
}

std::vector<Layer> read_histogram(DeviceType device, const HistogramArguments& a) {
  Checks check(device, a.params);
  auto layers = read_layers(check, device, a.params, a.grads, {}, a.mask_bits, a.counts, a.drop_scores, a.grow_signal);
  check.round(a.round, a.round_tensor);
  check.seeds(a.grow_seeds, 1);
  check.where(a.where);
  STD_TORCH_CHECK(a.total.size() == layers.size(), "dstee: total does not have one number per layer");
  STD_TORCH_CHECK(!a.growth || !a.grow_seeds.empty() || !a.grow_signal.empty() || !a.grads.empty(), "dstee: no growth signal");
  STD_TORCH_CHECK(a.word >= 0 && a.word <= 2 && a.shift % 8 == 0 && a.shift >= 0 && a.shift <= (a.word == 2 ? 56 : 24),
                  "dstee: word and shift are not a byte of a key");
  check.per_layer(a.prefix, ScalarType::Long, 3, "prefix");
  if (a.drop_from) check.per_layer(*a.drop_from, ScalarType::Long, 3, "drop_from");
  check.bonus(a.bonus, a.bonus_scale, a.round);
  STD_TORCH_CHECK(!a.bonus || !a.counts.empty(), "dstee: a bonus needs counts");
  return layers;
}

std::vector<Layer> read_keep(DeviceType device, const KeepArguments& a) {
  Checks check(device, a.params);
  auto layers = read_layers(check, device, a.params, {}, a.momenta, a.mask_bits, a.counts, a.scores, {});
  STD_TORCH_CHECK(a.total >= 0, "dstee: total is negative");
  check.one_int64(a.total_tensor, "total");
  check.round(a.round, a.round_tensor);
  return layers;
}

std::vector<Layer> read_scale(DeviceType device, const ScaleArguments& a) {
  auto layers = read_masked(device, a.signals, a.mask_bits);
  const Checks check(device, a.signals);
  check.numbers(a.k, a.k_tensor, "k");
  for (size_t i = 0; !a.k_tensor && i < layers.size(); ++i)
    STD_TORCH_CHECK(a.k[i] >= 0 && a.k[i] <= layers[i].n, "dstee: k is larger than the layer");
  check.round(a.round, a.round_tensor);
  return layers;
}

std::vector<Layer> read_masked(DeviceType device, const Tensors& params, const Tensors& mask_bits) {
  Checks check(device, params);
  return read_layers(check, device, params, {}, {}, mask_bits, {}, {}, {});
}

std::vector<Layer> read_thresholds(DeviceType device, const Tensors& tensors, const Tensors& mask_bits,
                                   const Tensor& thresholds) {
  Checks(device, tensors).per_layer(thresholds, ScalarType::Float, 1, "thresholds");
  return read_masked(device, tensors, mask_bits);
}

std::vector<Layer> read_noise(DeviceType device, const Tensors& out, const std::vector<int64_t>& seeds,
                              const std::vector<int64_t>& where) {
  Checks check(device, out);
  STD_TORCH_CHECK(out.empty() || !seeds.empty(), "dstee: no seeds");
  check.seeds(seeds, 4);
  check.where(where);
  std::vector<Layer> layers(out.size());
  for (size_t i = 0; i < out.size(); ++i) {
    const Layout layout(out[i]);
    STD_TORCH_CHECK(out[i].scalar_type() == ScalarType::Float, "dstee: out is not float32");
    STD_TORCH_CHECK(layout.n == 0 || layout.is_dense(), "dstee: out is not dense, non-overlapping storage");
    check.like_param(out[i], layout, "out");
    layers[i].n = layout.n;
    layers[i].w = out[i].mutable_data_ptr();
    check.note(layers[i].w, 4 * layout.n, true);
  }
  check.no_overlap();
  return layers;
}

std::vector<Place> places_of(const std::vector<int64_t>& where) {
  std::vector<Place> places(where.size() / 3);
  for (size_t i = 0; i < places.size(); ++i)
    places[i] = {static_cast<uint64_t>(where[3 * i]), static_cast<uint64_t>(where[3 * i + 1]),
                 static_cast<uint64_t>(where[3 * i + 2])};
  return places;
}

void check_rows(const Tensors& momenta, const std::vector<int64_t>& active) {
  for (size_t i = 0; i < momenta.size(); ++i)
    STD_TORCH_CHECK(momenta[i].numel() == active[i], "dstee: packed momenta have not one entry for each active weight");
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

int32_t read_round(int64_t round, const std::optional<Tensor>& tensor) {
  if (tensor) round = read<int64_t>(tensor->const_data_ptr());
  STD_TORCH_CHECK(round >= 0 && round <= kMaxRound, "dstee: round is not in 0..", kMaxRound);
  return static_cast<int32_t>(round);
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
