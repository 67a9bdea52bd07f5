// Kernels with one fault each, and a correct version of each: what the harness must find, and what it must not report.
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "../../csrc/cuda/launch.cuh"

namespace planted {

using dstee::cuda::dynamic_shared;
using dstee::cuda::launch;
using dstee::cuda::shared;
using dstee::cuda::store;

using Words = std::vector<unsigned>;
constexpr int kThreads = 256, kBlocks = 6;

struct Row {
  unsigned x[kThreads];
};

// Each thread reads what a thread of another warp wrote.
template <bool correct>
__global__ void barrier_after_write(unsigned* out) {
  auto& s = shared<Row>();
  const unsigned t = threadIdx.x;
  s.x[t] = 3 * t + 1;
  if (correct) __syncthreads();
  store(&out[blockIdx.x * kThreads + t], s.x[(t + 77) % kThreads]);
}

// Shared memory is used again while others may still read it.
template <bool correct>
__global__ void barrier_before_reuse(unsigned* out) {
  auto& s = shared<Row>();
  const unsigned t = threadIdx.x;
  unsigned sum = 0;
  for (unsigned round = 0; round < 4; ++round) {
    s.x[t] = round * 1000 + t;
    __syncthreads();
    sum = sum * 31 + s.x[(t + 32) % kThreads];
    if (correct) __syncthreads();
  }
  store(&out[blockIdx.x * kThreads + t], sum);
}

// Lanes of one warp do not run in lock-step.
template <bool correct>
__global__ void lanes_in_step(unsigned* out) {
  auto& s = shared<Row>();
  const unsigned t = threadIdx.x;
  s.x[t] = t;
  if (correct) __syncwarp();
  store(&out[blockIdx.x * kThreads + t], s.x[t ^ 1]);
}

template <bool correct>
__global__ void static_overflow(unsigned* out) {
  auto& s = shared<Row>();
  const unsigned t = threadIdx.x;
  s.x[correct ? t : t + 1] = t;
  __syncthreads();
  store(&out[blockIdx.x * kThreads + t], s.x[correct ? t : t + 1]);
}

template <bool correct>
__global__ void dynamic_overflow(unsigned* out) {
  auto* x = reinterpret_cast<unsigned*>(dynamic_shared());
  const unsigned t = threadIdx.x;
  x[correct ? t : t + 1] = t;
  __syncthreads();
  store(&out[blockIdx.x * kThreads + t], x[correct ? t : t + 1]);
}

template <bool correct>
__global__ void barrier_in_a_branch(unsigned* out) {
  const unsigned t = threadIdx.x;
  if (t < 64 || correct) __syncthreads();
  store(&out[blockIdx.x * kThreads + t], t);
}

template <bool correct>
__global__ void two_barriers_that_meet(unsigned* out) {
  const unsigned t = threadIdx.x;
  if (correct || t < 64)
    __syncthreads();
  else
    __syncthreads();
  store(&out[blockIdx.x * kThreads + t], t);
}

template <bool correct>
__global__ void early_return(unsigned* out) {
  const unsigned t = threadIdx.x;
  if (!correct && t == 70) return;
  __syncthreads();
  store(&out[blockIdx.x * kThreads + t], t);
}

template <bool correct>
__global__ void lane_missing_from_a_ballot(unsigned* out) {
  const unsigned t = threadIdx.x;
  unsigned votes = 0;
  if (correct || t % 32 < 20) votes = __ballot_sync(0xFFFFFFFFu, t % 3 == 0);
  store(&out[blockIdx.x * kThreads + t], votes);
}

template <bool correct>
__global__ void two_blocks_one_address(unsigned* out) {
  if (threadIdx.x == 0) store(&out[correct ? blockIdx.x : blockIdx.x % 2], 5u);
}

// As above, by scattered stores; neighbours in one sector are no conflict.
template <bool correct>
__global__ void two_blocks_scatter(unsigned* out) {
  if (threadIdx.x == 0) cuda_host::note_scatter(&out[correct ? blockIdx.x : blockIdx.x / 2], 4);
}

// The last block to finish adds up what all blocks stored.
template <bool correct>
__global__ void last_block_done(unsigned* out) {
  auto& s = shared<Row>();
  const unsigned t = threadIdx.x;
  unsigned *parts = out + 2, *done = out + 1;
  store(&parts[blockIdx.x * kThreads + t], t + blockIdx.x);
  __threadfence();
  if (correct) __syncthreads();
  if (t == 0) s.x[0] = atomicAdd(done, 1u);
  __syncthreads();
  if (s.x[0] != gridDim.x - 1) return;
  unsigned sum = 0;
  for (unsigned i = t; i < gridDim.x * kThreads; i += kThreads) sum += parts[i];
  atomicAdd(out, sum);
}

// A workspace with room for one element too few.
template <bool correct>
__global__ void past_the_workspace(unsigned* workspace) {
  const unsigned t = blockIdx.x * kThreads + threadIdx.x;
  if (correct && t == kBlocks * kThreads - 1) return;
  store(&workspace[t], t);
}

template <bool correct>
__global__ void workspace_never_written(unsigned* out, unsigned* workspace) {
  const unsigned t = blockIdx.x * kThreads + threadIdx.x;
  if (correct) store(&workspace[t], t);
  store(&out[t], workspace[t]);
}

// For the build with the undefined-behaviour sanitizer.
template <bool correct>
__global__ void shift_too_far(unsigned* out) {
  const unsigned t = threadIdx.x;
  store(&out[blockIdx.x * kThreads + t], 1u << (correct ? t % 32 : t));
}

struct alignas(16) Quad {
  unsigned x[4];
};
template <bool correct>
__global__ void misaligned_quad(unsigned* out) {
  const unsigned i = 4 * (blockIdx.x * kThreads / 8 + threadIdx.x % 32) + (correct ? 0 : 2);
  if (threadIdx.x < 32) store(reinterpret_cast<Quad*>(&out[i]), Quad{{i, i, i, i}});
}

// Every warp operation, with results that are known.
__global__ void all_operations(unsigned* out) {
  const unsigned t = threadIdx.x, lane = t % 32, full = 0xFFFFFFFFu;
  const unsigned half = lane < 16 ? 0xFFFFu : 0xFFFF0000u;
  unsigned* row = out + 24 * t;
  row[0] = __ballot_sync(full, lane % 3 == 0);
  row[1] = static_cast<unsigned>(__any_sync(full, lane == 40)) + 2 * static_cast<unsigned>(__all_sync(full, lane < 32));
  row[2] = __shfl_sync(full, 100 + lane, 5);
  row[3] = __shfl_up_sync(full, 100 + lane, 3);
  row[4] = __shfl_down_sync(full, 100 + lane, 3);
  row[5] = __shfl_xor_sync(full, 100 + lane, 8);
  row[6] = __reduce_add_sync(full, lane);
  row[7] = __reduce_min_sync(full, lane + 7);
  row[8] = __reduce_max_sync(full, lane + 7);
  row[9] = __ballot_sync(half, 1);
  row[10] = __reduce_add_sync(half, 1u);
  row[11] = static_cast<unsigned>(__shfl_xor_sync(full, static_cast<unsigned long long>(lane) << 32, 1) >> 32);
  row[12] = __float_as_uint(__shfl_down_sync(full, static_cast<float>(lane), 1));
  row[13] = __shfl_sync(full, lane, 3, 8);
  row[14] = __shfl_up_sync(full, lane, 1, 8);
  row[15] = static_cast<unsigned>(__syncthreads_count(t < 100));
  row[16] = static_cast<unsigned>(__syncthreads_or(t == 300)) + 2 * static_cast<unsigned>(__syncthreads_and(t < 256));
  row[17] = static_cast<unsigned>(__popc(t) + __clz(static_cast<int>(t)) + __ffs(static_cast<int>(t)));
  row[18] = __brev(t);
  row[19] = __reduce_or_sync(full, 1u << lane % 4);
}

using Run = std::function<Words(bool)>;

template <auto faulty, auto fixed>
Run kernel(size_t dynamic_bytes = 0) {
  return [=](bool correct) {
    alignas(16) static unsigned out[8 * kBlocks * kThreads];
    for (unsigned& x : out) x = 0;
    if (correct)
      launch<fixed>(kBlocks, kThreads, dynamic_bytes, nullptr, out);
    else
      launch<faulty>(kBlocks, kThreads, dynamic_bytes, nullptr, out);
    return Words(out, out + 2 + kBlocks * kThreads);
  };
}
#define PLANTED(name, ...) {#name, kernel<&name<false>, &name<true>>(__VA_ARGS__)}

Words with_workspace(bool correct, bool overflow) {
  struct Memory {
    unsigned* words;
    ~Memory() { cuda_host::free_workspace(words); }
  } memory{static_cast<unsigned*>(cuda_host::new_workspace(4 * (kBlocks * kThreads - overflow)))};
  Words out(kBlocks * kThreads);
  if (overflow && correct) launch<past_the_workspace<true>>(kBlocks, kThreads, 0, nullptr, memory.words);
  if (overflow && !correct) launch<past_the_workspace<false>>(kBlocks, kThreads, 0, nullptr, memory.words);
  if (!overflow && correct) launch<workspace_never_written<true>>(kBlocks, kThreads, 0, nullptr, out.data(), memory.words);
  if (!overflow && !correct) launch<workspace_never_written<false>>(kBlocks, kThreads, 0, nullptr, out.data(), memory.words);
  return out;
}

const std::map<std::string, Run>& kernels() {
  static const std::map<std::string, Run> all = {
      PLANTED(barrier_after_write),
      PLANTED(barrier_before_reuse),
      PLANTED(lanes_in_step),
      PLANTED(static_overflow),
      PLANTED(dynamic_overflow, 4 * kThreads),
      PLANTED(barrier_in_a_branch),
      PLANTED(two_barriers_that_meet),
      PLANTED(early_return),
      PLANTED(lane_missing_from_a_ballot),
      PLANTED(two_blocks_one_address),
      PLANTED(two_blocks_scatter),
      PLANTED(last_block_done),
      PLANTED(shift_too_far),
      PLANTED(misaligned_quad),
      {"past_the_workspace", [](bool correct) { return with_workspace(correct, true); }},
      {"workspace_never_written", [](bool correct) { return with_workspace(correct, false); }},
  };
  return all;
}

// What the module offers to the tests.
Words run(const std::string& name, bool correct) { return kernels().at(name)(correct); }

Words run_all_operations() {
  Words out(24 * kThreads);
  launch<&all_operations>(1, kThreads, 0, nullptr, out.data());
  return out;
}

// blocks * threads, each of which passes so many barriers and atomics.
__global__ void busy_kernel(unsigned* out, int barriers) {
  for (int i = 0; i < barriers; ++i) {
    __syncthreads();
    if (threadIdx.x % 8 == 0) atomicAdd(out, 1u);
  }
}
unsigned busy(unsigned blocks, unsigned threads, int barriers) {
  unsigned out = 0;
  launch<&busy_kernel>(blocks, threads, 0, nullptr, &out, barriers);
  return out;
}

// What a selection does digit by digit: shuffles, a ballot, shared memory, barriers and stores.
__global__ void churn_kernel(unsigned* out, int rounds) {
  auto* sums = reinterpret_cast<unsigned*>(dynamic_shared());
  const unsigned t = threadIdx.x, warps = blockDim.x / 32;
  unsigned x = t;
  for (int i = 0; i < rounds; ++i) {
    unsigned sum = x;
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    if (t % 32 == 0) sums[t / 32] = sum + static_cast<unsigned>(__popc(i));
    const unsigned votes = __ballot_sync(~0u, static_cast<int>(x & 1u));
    __syncthreads();
    for (unsigned w = 0; w < warps; ++w) x = x * 5 + sums[w] + votes;
    __syncthreads();
    store(&out[blockIdx.x * blockDim.x + t], x);
  }
}
Words churn(unsigned blocks, unsigned threads, int rounds) {
  Words out(blocks * threads);
  launch<&churn_kernel>(blocks, threads, 100 << 10, nullptr, out.data(), rounds);
  return out;
}

// What a new workspace holds; it is given back full of `left_behind`.
Words use_workspace(size_t words, unsigned left_behind) {
  auto* memory = static_cast<unsigned*>(cuda_host::new_workspace(4 * words));
  Words found(memory, memory + words);
  for (size_t i = 0; i < words; ++i) memory[i] = left_behind;
  cuda_host::free_workspace(memory);
  return found;
}

// Each of 64 threads streams 4 bytes in and 16 out, gathers 8 bytes of 36 (of two sectors for every eighth thread), scatters 2
// of 64, and adds to static, dynamic and global memory.
__global__ void move_kernel(const char* in, char* out, unsigned* sum) {
  const unsigned t = 64 * blockIdx.x + threadIdx.x;
  cuda_host::note_load(in + 4 * t, 4);
  cuda_host::note_store(out + 16 * t, 16);
  cuda_host::note_gather(in + 36 * t, 8);
  cuda_host::note_scatter(out + (1 << 20) + 64 * t, 2);
  atomicAdd(&shared<Row>().x[t % 8], 1u);
  atomicAdd(reinterpret_cast<unsigned*>(dynamic_shared()) + 24, 1u);
  atomicAdd(sum, 1u);
  atomicCAS(sum + 1, 0u, t);
}
void move(unsigned blocks) {
  alignas(32) static char in[32], out[32];  // more is noted, but nothing read or written
  unsigned sum[2] = {0, 0};
  launch<&move_kernel>(blocks, 64, 100, nullptr, in, out, sum);
  cuda_host::note_load(in, 4);  // not in a launch: for nobody
  cuda_host::note_store(out, 4);
  cuda_host::note_gather(in, 4);
  cuda_host::note_scatter(out, 4);
  atomicAdd(sum, 1u);
}

int processors() {
  int count = 0;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0);
  return count;
}

}  // namespace planted
