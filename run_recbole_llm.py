"""python run_recbole_llm.py --model=CALRec --dataset=Pet"""

import sys

from recbole_llm.cli import main

if __name__ == "__main__":
    sys.exit(main())
