"""All four steps in order; a run that was killed goes on where it was.

python -m experiments.learn2pd.run
"""

from experiments.learn2pd import ablate, collect, evaluate, fit

if __name__ == "__main__":
    for step in (collect, fit, evaluate, ablate):
        step.main()
