// SPDX-License-Identifier: Apache-2.0
// Words for messages: formatted text, places in the source.
#pragma once

#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <source_location>
#include <string>

#include "simt/vector_types.h"

extern "C" void __sanitizer_symbolize_pc(void* pc, const char* format, char* out, size_t out_size)
    __attribute__((weak));

namespace simt {

using Site = std::source_location;

inline std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
inline std::string text(const char* format, ...) {
  char buffer[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(buffer, sizeof(buffer), format, arguments);
  va_end(arguments);
  return buffer;
}

inline std::string text(const Site& site) {
  return text("%s:%u", site.file_name(), site.line());
}
inline std::string text(const uint3& v) {
  return text("(%u,%u,%u)", v.x, v.y, v.z);
}

// Two calls from one place in the source, in any instantiation of a template.
inline bool same_place(const Site& a, const Site& b) {
  if (a.line() != b.line() || a.column() != b.column()) return false;
  return a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0;
}

// What binutils' addr2line says of an address, or "?".
// NOTE: the sanitizers' own reader of debug information misses the lines of some templates.
inline std::string debug_information(const char* options, void* code) {
  Dl_info file;
  if (dladdr(code, &file) == 0) return "?";
  const auto offset = static_cast<size_t>(static_cast<char*>(code) - static_cast<char*>(file.dli_fbase));
  const std::string command =
      text("env -u LD_PRELOAD addr2line %s -e '%s' 0x%zx 2>/dev/null", options, file.dli_fname, offset);
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return "?";
  char line[512] = "?";
  if (std::fgets(line, sizeof(line), pipe) != nullptr) line[std::strcspn(line, "\n")] = '\0';
  pclose(pipe);
  return line;
}

inline std::string function_name(void* code) {
  char name[512] = "?";
  if (&__sanitizer_symbolize_pc == nullptr) return debug_information("-f -C", code);
  __sanitizer_symbolize_pc(code, "%f", name, sizeof(name));
  return name;
}

// "file.cu:12"; `code` is a return address, behind the instruction that is meant.
inline std::string code_place(void* code) {
  const std::string line = debug_information("", static_cast<char*>(code) - 1);
  return line.substr(0, line.find(' '));  // without "(discriminator 2)"
}

}  // namespace simt
