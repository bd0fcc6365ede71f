// SPDX-License-Identifier: Apache-2.0
// The Python module without torch: what was built, what this machine has, and every room's *_py.cpp.
#include <pybind11/stl.h>

#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "core/isa.h"
#include "core/python.h"

// The emulator that the tests compile this file against has kernels, but no driver to ask.
#if FASTDIFF_HAS_CUDA && !defined(FASTDIFF_SIMT)
#define FASTDIFF_ASKS_DRIVER 1
#include <cuda_runtime_api.h>
#else
#define FASTDIFF_ASKS_DRIVER 0
#endif

namespace fastdiff {
namespace {

// "baseline avx2" -> {"baseline", "avx2"}
std::vector<std::string> words(const char* text) {
  std::istringstream stream(text);
  return {std::istream_iterator<std::string>(stream), {}};
}

// Fixed at build time, except for the two ISA rows. Touches no driver, so that it is safe before a fork.
py::dict facts() {
  py::dict facts;
  facts["version"] = FASTDIFF_VERSION;
  facts["compiler"] = __VERSION__;
  facts["isas"] = words(FASTDIFF_ISAS);
  facts["isa_detected"] = isa::name(isa::detected());
  facts["isa_used"] = isa::name(isa::used());
  facts["has_cuda"] = static_cast<bool>(FASTDIFF_HAS_CUDA);
  facts["cuda_archs"] = words(FASTDIFF_CUDA_ARCHS);
  return facts;
}

void use_isa(const std::string& name) {
  for (Isa which : kIsas) {
    if (name != isa::name(which)) continue;
    if (isa::request(which)) return;
    throw py::value_error("fastdiff: ISA " + name +
                          (isa::built(which) ? " is not supported by this CPU" : " was not built"));
  }
  std::string names;
  for (Isa which : kIsas) names += std::string(names.empty() ? "" : ", ") + isa::name(which);
  throw py::value_error("fastdiff: ISA must be one of " + names + ", got " + name);
}

#if FASTDIFF_ASKS_DRIVER

// 13020 -> "13.2"
std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

py::dict device_facts(int index) {
  cudaDeviceProp properties;
  py::dict facts;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, index); error != cudaSuccess) {
    facts["unavailable"] = cudaGetErrorString(error);
    return facts;
  }
  facts["name"] = std::string(properties.name);
  facts["capability"] = std::to_string(properties.major) + "." + std::to_string(properties.minor);
  facts["multiprocessors"] = properties.multiProcessorCount;
  facts["memory_bytes"] = properties.totalGlobalMem;
  return facts;
}

// Asks the driver, and so initialises it: a process that forks workers should not call this before.
py::dict cuda_facts() {
  py::dict facts;
  int runtime = 0, driver = 0, count = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);  // 0 if there is no driver
  const cudaError_t error = cudaGetDeviceCount(&count);
  facts["runtime"] = version_text(runtime);
  facts["driver"] = driver != 0 ? py::object(py::str(version_text(driver))) : py::none();
  facts["unavailable"] = error != cudaSuccess ? py::object(py::str(cudaGetErrorString(error))) : py::none();
  py::list devices;
  for (int index = 0; error == cudaSuccess && index < count; ++index) devices.append(device_facts(index));
  facts["devices"] = devices;
  return facts;
}

#else

py::dict cuda_facts() {
  py::dict facts;
  facts["runtime"] = py::none();
  facts["driver"] = py::none();
  facts["unavailable"] = "fastdiff was built without CUDA";
  facts["devices"] = py::list();
  return facts;
}

#endif

}  // namespace
}  // namespace fastdiff

PYBIND11_MODULE(FASTDIFF_MODULE_NAME, m) {
  m.doc() = "fastdiff's kernels for arrays of any library that speaks DLPack. Knows nothing of torch.";
  m.def("facts", &fastdiff::facts, "What was built, and the instruction set in use. Asks no driver.");
  m.def("cuda_facts", &fastdiff::cuda_facts, "CUDA runtime, driver and devices, or why there are none.");
  m.def("use_isa", &fastdiff::use_isa, pybind11::arg("name"),
        "Make this module's CPU kernels use one instruction set: see facts()[\"isas\"].");
  fastdiff::PyRoom::bind_all(m);
}
