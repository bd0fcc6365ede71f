// SPDX-License-Identifier: Apache-2.0
// What attention_map_energy keeps of each query on the device, and a thread of it on the CPU.
#pragma once

#include "attention/attention_map_energy/attention_map_energy.h"
#include "attention/maps_room.h"

namespace fastdiff::attention_map_energy {
namespace {

// Elements of one thread's memory: the two maps of a block of queries, and their energies.
inline int64_t room_numel(const Params& p) {
  const attention::MapRoom room(p);
  return room.numel() + room.lanes;
}

}  // namespace
}  // namespace fastdiff::attention_map_energy
