#include "lanes_scalar.h"
#include "loops_over_lanes.h"

namespace dstee::cpu {
const Loops kScalarLoops = DSTEE_LOOPS("scalar");
}
