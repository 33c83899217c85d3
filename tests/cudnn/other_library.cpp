extern "C" int nothing_of_cudnn() { return 0; }
