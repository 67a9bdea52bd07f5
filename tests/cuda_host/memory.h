// Global memory as the harness sees it: workspaces, who stores where, and how much is moved. Private to the harness.
#pragma once

#include <cstdint>
#include <string>

namespace cuda_host {

void seed_workspaces(uint64_t seed);  // starts the sequence of their poisons

// Empty, or that a workspace was left by a write.
std::string broken_workspace();

// Around a launch.
void start_traffic(const char* kernel);
void end_traffic();

}  // namespace cuda_host
