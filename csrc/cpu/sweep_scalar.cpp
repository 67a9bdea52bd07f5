#include "simd_scalar.h"
#include "sweep.h"

namespace dstee {
const Loops kScalarLoops = DSTEE_LOOPS("scalar");
}
