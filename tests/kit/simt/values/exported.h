// SPDX-License-Identifier: Apache-2.0
// C functions for ctypes that give the message of what they throw, or null.
#pragma once

#include <exception>
#include <string>

#define EXPORT(name, arguments) extern "C" __attribute__((visibility("default"))) const char* name arguments

template <class F>
const char* error_of(F run) {
  static std::string message;
  try {
    run();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
