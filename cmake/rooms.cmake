# SPDX-License-Identifier: Apache-2.0
# Finds source files by their suffix: a room copied into csrc/ is built next time, with no list to edit.
#   fastdiff_rooms(out PATTERN...)   sets `out` to the files under csrc/ that match any of the patterns
function(fastdiff_rooms out)
  set(found)
  foreach(pattern ${ARGN})
    file(GLOB_RECURSE files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/${pattern})
    list(APPEND found ${files})
  endforeach()
  set(${out} ${found} PARENT_SCOPE)
endfunction()
