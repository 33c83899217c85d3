#include "launch/program.h"

int main(int argc, char** argv) { return lockstep::launch::run_program(argc, argv); }
