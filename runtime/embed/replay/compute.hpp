// The operations of a plan's steps: NumPy's functions of one or two operands, and two reductions.
#pragma once

#include "plan.hpp"

namespace telecine {

// Operands are widened to double, and what comes of them is rounded to the type of `out`.
// Throws std::runtime_error: there is no such operation, or shapes that do not fit.
void compute(const std::string& operation, const View& out, const std::vector<Operand>& operands);

}  // namespace telecine
