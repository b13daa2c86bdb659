# For tests that build a program outside the tree against the installed package, as a user would.
# Given by the build: SOURCE_DIR, BUILD_DIR, CXX, CXX_FLAGS, BUILD_TYPE.

function(run_step what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${what} failed (${result}):\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

# Installs the build below `work`, then configures and builds the project in `project` against it.
function(build_outside project work)
  file(REMOVE_RECURSE ${work}/prefix ${work}/build)
  run_step("install" ${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${work}/prefix)
  run_step("configure" ${CMAKE_COMMAND} -G Ninja -S ${project} -B ${work}/build
    -DCMAKE_PREFIX_PATH=${work}/prefix -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_CXX_FLAGS=${CXX_FLAGS}
    -DCMAKE_BUILD_TYPE=${BUILD_TYPE})
  run_step("build" ${CMAKE_COMMAND} --build ${work}/build)
endfunction()
