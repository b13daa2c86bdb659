# find_package(rivulet) works from outside: a small program trains a two-layer net and its loss falls.
include(${CMAKE_CURRENT_LIST_DIR}/../outside.cmake)

set(work ${BUILD_DIR}/package_test)
build_outside(${CMAKE_CURRENT_LIST_DIR} ${work})
run_step("the program" ${work}/build/outside)
if(NOT output MATCHES "^([0-9.e+-]+) ([0-9.e+-]+)\n$")
  message(FATAL_ERROR "the program printed '${output}', not its first and last loss")
endif()
set(first ${CMAKE_MATCH_1})
set(last ${CMAKE_MATCH_2})
run_step("comparing the losses" awk "BEGIN { exit !(${last} > 0 && ${last} < ${first} / 5) }")
message(STATUS "loss ${first} -> ${last}")
