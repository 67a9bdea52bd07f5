// Switching between stacks. Written out for x86-64, where it takes a few nanoseconds; ucontext, with a system call per switch,
// anywhere else.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) || defined(CUDA_HOST_UCONTEXT)
#include <ucontext.h>
#endif

namespace cuda_host {

#if defined(__x86_64__) && !defined(CUDA_HOST_UCONTEXT)

using Context = void*;  // the stack pointer; all else that a call preserves lies on the stack

extern "C" void cuda_host_switch(Context* from, Context to);

inline void switch_context(Context& from, Context& to) { cuda_host_switch(&from, to); }

inline void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  auto* top = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15});
  *--top = 0;  // where entry would return to
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  context = top;
}

#else

using Context = ucontext_t;

inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

inline void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  ::makecontext(&context, entry, 0);
}

#endif

}  // namespace cuda_host
