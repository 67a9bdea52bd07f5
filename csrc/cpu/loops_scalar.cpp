#include "lane_loops.h"
#include "lanes_scalar.h"

namespace dstee::cpu {
const Loops kScalarLoops = DSTEE_LOOPS("scalar");
}
