# Every C++ block of README.md compiles as printed against the installed package and runs without an error.
# Lines that are #include move to the top; the rest becomes the body of main. Relative paths mean the same
# as in the source tree, but what a block writes lands in the build folder.
include(${CMAKE_CURRENT_LIST_DIR}/../outside.cmake)

set(work ${BUILD_DIR}/readme_test)
file(REMOVE_RECURSE ${work}/project ${work}/run)
file(READ ${SOURCE_DIR}/README.md text)
# Brackets and semicolons are special in CMake lists; they travel under other names.
string(REPLACE "[" "<open>" text "${text}")
string(REPLACE "]" "<close>" text "${text}")
string(REPLACE ";" "<semicolon>" text "${text}")
string(REGEX MATCHALL "\n```cpp\n([^`]|`[^`]|``[^`])*\n```" blocks "${text}")
list(LENGTH blocks count)
if(count EQUAL 0)
  message(FATAL_ERROR "README.md has no C++ block")
endif()

set(lists "cmake_minimum_required(VERSION 3.25)\nproject(readme LANGUAGES CXX)\nfind_package(rivulet REQUIRED)\n")
set(number 0)
foreach(block IN LISTS blocks)
  math(EXPR number "${number} + 1")
  string(REGEX REPLACE "^\n```cpp\n" "" block "${block}")
  string(REGEX REPLACE "\n```$" "\n" block "${block}")
  string(REGEX MATCHALL "#include [^\n]*\n" includes "${block}")
  string(REGEX REPLACE "#include [^\n]*\n" "" body "${block}")
  list(JOIN includes "" includes)
  set(program "#include <cstdio>\n#include <rivulet/rivulet.h>\n${includes}\nint main() try {\n${body}
  return 0;\n} catch (const std::exception& e) {\n  std::fputs(e.what(), stderr);\n  return 1;\n}\n")
  string(REPLACE "<open>" "[" program "${program}")
  string(REPLACE "<close>" "]" program "${program}")
  string(REPLACE "<semicolon>" ";" program "${program}")
  file(WRITE ${work}/project/block${number}.cpp "${program}")
  string(APPEND lists "add_executable(block${number} block${number}.cpp)\n"
    "target_link_libraries(block${number} PRIVATE rivulet::rivulet)\n")
endforeach()
file(WRITE ${work}/project/CMakeLists.txt "${lists}")

build_outside(${work}/project ${work})
file(MAKE_DIRECTORY ${work}/run)
foreach(folder apps models)
  file(CREATE_LINK ${SOURCE_DIR}/${folder} ${work}/run/${folder} SYMBOLIC)
endforeach()
foreach(i RANGE 1 ${number})
  run_step("block ${i}" ${CMAKE_COMMAND} -E chdir ${work}/run ${work}/build/block${i})
  message(STATUS "block ${i} of README.md ran: ${output}")
endforeach()
