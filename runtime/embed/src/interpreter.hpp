// The process's interpreter.
#pragma once

#include <string>

namespace telecine {

// Start Python over an environment, once for the process; on return no thread holds its lock. Again: nothing, for the
// same environment. Not to be called by two threads at once.
//
// Throws BackendError: the environment is missing, incomplete or of another Python version; Python runs over another
// one already, or was started by someone else.
void start_interpreter(const std::string& environment);

}  // namespace telecine
