#pragma once  // what setup.py writes for the real build; here the macros come from build.py
