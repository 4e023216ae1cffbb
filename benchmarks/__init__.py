"""What poolkit costs and how it behaves on a bad day, beside what people would use instead.

    python3 run.py bench                         every suite
    python3 run.py bench recovery --quick        one, once through
    python3 run.py bench recovery --json FILE    with every number that was measured

A suite is a module with `main(argv)`. All that it compares is measured in one interleaved run; what is shown are
medians with their range, and what carries over to another machine are the ratios.
"""
